"""Stock MMEngine, MMCV and MMPretrain work on today's torch, NumPy and setuptools; each shim is needed."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import REPO
from new_process import new_python
from synthaug_plugins.compat import SHIMS

# name -> a script that fails without the shim and ends well with it.
FAULTS = {
    'adafactor': """
        import sys, mmengine.optim
        if 'transformers' in sys.modules: raise ImportError('Error: MMEngine loads transformers')
        import torch
        from mmengine.registry import OPTIMIZERS
        weight = torch.nn.Parameter(torch.ones(2))
        weight.sum().backward()
        optimizer = OPTIMIZERS.build(dict(type='Adafactor', params=[weight], lr=0.1, relative_step=False))
        optimizer.step()
        assert type(optimizer).__module__ == 'transformers.optimization' and (weight < 1).all()
    """,
    'checkpoints': """
        import torch, numpy as np
        from mmengine.logging import MessageHub
        from mmengine.runner import load_checkpoint
        hub = MessageHub.get_instance('x')
        hub.update_scalar('loss', 1.0)
        hub.update_info('best', np.float64(3))
        model = torch.nn.Linear(1, 1)
        torch.save(dict(state_dict=model.state_dict(), message_hub=hub.state_dict()), 'x.pth')
        loaded = load_checkpoint(model, 'x.pth')
        assert loaded['message_hub']['log_scalars']['loss'].current() == 1.0
    """,
    'pkg_resources': """
        from mmengine.config import Config
        from mmengine.utils import get_installed_path, is_installed
        open('r.py', 'w').write("_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'")
        assert Config.fromfile('r.py').model.type == 'ImageClassifier'
        assert is_installed('mmpretrain') and not is_installed('no-such-package')
        assert get_installed_path('mmpretrain').endswith('mmpretrain')
        assert not is_installed('mmcv-lite') or get_installed_path('mmcv-lite').endswith('mmcv')
    """,
    'hue': """
        import cv2, mmcv, numpy as np
        red = np.zeros((2, 2, 3), np.uint8); red[..., 2] = 255
        magenta = mmcv.adjust_hue(red, -1 / 6)
        assert magenta[0, 0, 0] > 240 and magenta[0, 0, 1] < 15 and magenta[0, 0, 2] > 240, magenta[0, 0]
        import numpy as np
        from mmpretrain.datasets.transforms import ColorJitter
        for _ in range(20): ColorJitter(hue=0.5)(dict(img=red))
    """,
    'in1d': """
        import torch
        from mmpretrain.evaluation import RetrievalRecall
        assert RetrievalRecall.calculate([[0]], [[0, 1]], topk=1, pred_indices=True, target_indices=True)[0] == 100
    """,
    'subset': """
        from mmengine.dataset import BaseDataset, Compose
        class Numbers(BaseDataset):
            def load_data_list(self): return [dict(n=i) for i in range(4)]
        for i in range(500):
            subset = Numbers(ann_file='', pipeline=[lambda x: x], serialize_data=False).get_subset([0, 1])
            if not isinstance(subset.pipeline, Compose): raise TypeError(f'Error: the pipeline is a {type(subset.pipeline)} in round {i}')
    """,
    'multimodal': """
        import mmpretrain.models
    """,
}
BOMBS = """
    import os, pickle, torch
    from mmengine.logging import HistoryBuffer
    class Bomb:
        def __init__(self, how): self.how = how
        def __reduce__(self): return self.how
    for how in ((os.system, ('touch pwned',)), (getattr, (HistoryBuffer, '__init__')), (getattr, (dict, 'pop'))):
        torch.save({'a': Bomb(how)}, 'bomb.pth')
        try:
            torch.load('bomb.pth')
        except (pickle.UnpicklingError, AttributeError):
            continue
        raise SystemExit(f'loaded {how}')
    assert not os.path.exists('pwned')
"""
FAKE_PYCOCOTOOLS = {'pycocotools/__init__.py': '', 'pycocotools-2.0.8.dist-info/METADATA': 'Metadata-Version: 2.1\nName: pycocotools\nVersion: 2.0.8\n'}


# Each job has a process of its own, with only the shims it names; they begin where what no shim touches is loaded: torch, and most of what transformers loads.
FORKED = """
import contextlib, json, os, sys, traceback
with contextlib.suppress(ImportError):
    import accelerate
assert 'transformers' not in sys.modules
jobs = json.load(sys.stdin)
for name, (shims, scripts) in jobs.items():
    os.makedirs(name, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        os.chdir(name)  # which is the first place where modules are looked for
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open('stderr', os.O_CREAT | os.O_WRONLY), 2)
        status = 1
        try:
            from synthaug_plugins import compat
            for s in compat.SHIMS:
                if s.name in shims and s.present():
                    s.mend()
            for script in scripts:
                exec(script, {'__name__': '__main__'})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    jobs[name] = status, open(f'{name}/stderr').read()
json.dump(jobs, sys.stdout)
"""
Ended = dict[str, tuple[int, str]]


def run(folder: Path, **jobs: tuple[Sequence[str], Sequence[str]]) -> Ended:
    """Run each job's scripts in a process that has only the job's shims, in a folder of the job's name; status and standard error of each."""
    env = {'PYTHONPATH': str(REPO), 'PATH': '/usr/bin:/bin', 'HOME': str(folder), 'OMP_NUM_THREADS': '1'}
    plain = {name: (shims, [textwrap.dedent(s) for s in scripts]) for name, (shims, scripts) in jobs.items()}
    done = new_python('-c', FORKED, stdin=json.dumps(plain), cwd=folder, env=env)
    assert done.status == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope='module')
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Each script without its shim, by name; with all shims, those that need a folder of their own and, as 'mended', the others together."""
    folder = tmp_path_factory.mktemp('shims')
    for job in ('multimodal', 'multimodal_mended'):
        for file, text in FAKE_PYCOCOTOOLS.items():
            (folder / job / file).parent.mkdir(exist_ok=True, parents=True)
            (folder / job / file).write_text(text)
    every = [s.name for s in SHIMS]
    without = {name: ([n for n in every if n != name], [script]) for name, script in FAULTS.items()}
    together = [script for name, script in FAULTS.items() if name != 'multimodal']
    return run(folder, **without, multimodal_mended=(every, [FAULTS['multimodal']]), mended=(every, together), bombs=(['checkpoints'], [BOMBS]))


@pytest.mark.parametrize('name', FAULTS)
def test_each_shim_mends_a_fault_that_is_there_without_it(name: str, ended: Ended) -> None:
    status, said = ended['multimodal_mended' if name == 'multimodal' else 'mended']
    assert status == 0, said[-2000:]
    status, said = ended[name]
    if status == 0:
        pytest.skip(f'the installed family has not the fault {name!r}: the shim rests')
    assert 'Error' in said


def test_checkpoint_shim_does_not_open_the_door_to_code(ended: Ended) -> None:
    status, said = ended['bombs']
    assert status == 0, said[-2000:]


def test_every_shim_is_tested() -> None:
    assert {s.name for s in SHIMS} == set(FAULTS)
