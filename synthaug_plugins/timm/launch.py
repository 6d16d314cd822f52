"""Train with timm's own, unchanged train.py on real and synthetic images together.

python -m synthaug_plugins.timm.launch path/to/train.py --data-dir data/pets --model resnet50 --num-classes 37 --synthaug-mix stores/pets --synthaug-alpha 0.5

Everything after the script is train.py's own, beside the options --synthaug-*; `path/to/train.py --help` shows both. Several processes:
torchrun --nproc-per-node 4 -m synthaug_plugins.timm.launch path/to/train.py ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import RecipeError, SynthAugError, nearest


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: refusals become one line on standard error and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ('-h', '--help'):
        print(__doc__)
        sys.exit(0 if given else 2)
    try:
        launch(given[0], given[1:])
    except SynthAugError as error:
        print(f'synthaug: {error}', file=sys.stderr)
        sys.exit(error.exit_code)


def launch(path: str, arguments: Sequence[str]) -> None:
    """Run the train.py at `path` with its `arguments`, extended by the options --synthaug-* among them.

    The script is loaded as it is; only the names `script.HOOKS` in it are exchanged, nothing in timm itself. It is refused before anything loads
    if it lacks them, and before the first batch if it went past one.

    Raises:
        SynthAugError: a refusal, before the model is built where that can be known.
    """
    from synthaug_plugins.timm.script import TrainScript

    _check_known(arguments)
    script = TrainScript(Path(path))
    # As for `python train.py`: what lies beside the script, a checkout of timm say, is imported before what is installed.
    sys.path.insert(0, str(script.path.resolve().parent))
    from synthaug_plugins.timm.version import check_timm_version

    version = check_timm_version()
    _quiet_beside_the_first()
    module = script.load()
    from mmengine.logging import print_log

    from synthaug_plugins.timm.hooks import Hooks
    from synthaug_plugins.timm.options import add_options, read_options

    add_options(module.parser)
    sys.argv = [path, *arguments]
    args = module._parse_args()[0]
    options = read_options(args)
    print_log(f'timm {version}, {path}, extended.', logger='current')
    _tell_changes(args)
    hooks = Hooks(module, args, options)
    module.main()
    hooks.check_used()


def _check_known(arguments: Sequence[str]) -> None:
    from synthaug_plugins.timm.options import OPTIONS

    known = [f'--synthaug-{name}' for name in OPTIONS]
    for argument in arguments:
        name = argument.partition('=')[0]
        if name.startswith('--synthaug') and name not in known:
            raise RecipeError(f'There is no option {name}.', nearest(name, known))


def _quiet_beside_the_first() -> None:
    """Of several processes only the first one says what it does; errors come from all."""
    from mmengine.logging import MMLogger

    rank = next((os.environ[name] for name in ('RANK', 'SLURM_PROCID') if name in os.environ), '0')  # as timm finds its place
    MMLogger.get_instance('synthaug', logger_name='synthaug', log_level='INFO' if rank == '0' else 'ERROR')


def _tell_changes(args: Any) -> None:
    """Of a run that is resumed: say which of our options differ from those in the args.yaml beside its checkpoint."""
    import yaml
    from mmengine.logging import print_log

    from synthaug_plugins.timm.options import PREFIX

    beside = Path(args.resume).parent / 'args.yaml' if getattr(args, 'resume', '') else None
    if beside is None or not beside.is_file():
        return
    then, now = yaml.safe_load(beside.read_text()) or {}, vars(args)
    for key in sorted(k for k in now if k.startswith(PREFIX) or k == 'seed'):
        if then.get(key) != now[key]:
            print_log(f'Resumed with another {key}: {now[key]!r}, and {then.get(key)!r} before; batches differ from those of one run.', 'current', 30)


if __name__ == '__main__':
    main()
