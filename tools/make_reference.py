"""Write docs/reference.md from the code: commands, recipe keys, registry entries, hooks. A test fails when it is out of date.

python tools/make_reference.py
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from synthaug_plugins import compat, hookspecs, registry
from synthaug_plugins.cli import every_command
from synthaug_plugins.diffusion import PRESETS, Augmentation, LevelClassifier, sample
from synthaug_plugins.engine import learn_embeddings_recipe, learn_erasure_recipe, learn_minority_recipe, learn_recipe, learn_words_recipe, score
from synthaug_plugins.engine.recipe import DEFAULTS, KEYS
from synthaug_plugins.evaluation import protocol
from synthaug_plugins.evaluation.ablation.curves import CURVE_KEYS
from synthaug_plugins.evaluation.ablation.entries import MADE_KEYS
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining
from synthaug_plugins.learning.erasure import PRESETS as ERASURE_PRESETS
from synthaug_plugins.learning.erasure import ErasureTraining
from synthaug_plugins.learning.minority_options import LevelTraining
from synthaug_plugins.learning.options import EDMTraining
from synthaug_plugins.learning.words_options import WordTraining
from synthaug_plugins.plugins import BUILT_IN
from synthaug_plugins.timm import MixClassificationTask, MixedImageDataset, MixedTarget, create_mixed_dataset, create_mixed_loader
from synthaug_plugins.timm import launch as timm_launch
from synthaug_plugins.timm.options import OPTIONS as LAUNCHER_OPTIONS

compat.apply()  # the entries of the trainer's side load MMPretrain
TARGET = Path(__file__).parents[1] / 'docs' / 'reference.md'


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ['| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', ' ') for cell in row) + ' |' for row in (head, *rows)]
    return '\n'.join([lines[0], '|' + '---|' * len(head), *lines[1:]])


def options_table(options: Mapping[str, str]) -> str:
    return table(('key', 'meaning'), [(f'`{key}`', text) for key, text in options.items()])


def commands() -> Iterator[str]:
    for name, command in every_command().items():
        yield f'### synthaug {name}\n\n{inspect.cleandoc(command.help)}'
        rows = []
        for parameter in command.params:
            if parameter.name != 'help':
                spelled = parameter.opts[0] if parameter.param_type_name == 'option' else (parameter.metavar or parameter.name.upper())
                rows.append((f'`{spelled}`', parameter.help or ''))
        if rows:
            yield table(('option', 'meaning'), rows)


def entries() -> Iterator[str]:
    ours, theirs = (
        ('GENERATORS', 'GUIDANCE', 'PROMPTS', 'INSPECTORS', 'DISTANCES'),
        ('DATASETS', 'DATA_SAMPLERS', 'TRANSFORMS', 'MODELS', 'HOOKS', 'PARAM_SCHEDULERS'),
    )
    for name in (*ours, *theirs):
        root = getattr(registry, name)
        root.import_from_location()
        for key, cls in sorted(root.module_dict.items()):
            yield f"### {key}\n\n`{name}`, `type='synthaug_plugins.{key}'`\n\n```text\n{inspect.getdoc(cls)}\n```"


def keys_table(keys: Mapping[str, str], defaults: Mapping[str, object]) -> str:
    return table(('key', 'default', 'meaning'), [(f'`{k}`', f'`{defaults[k]!r}`' if k in defaults else 'required', text) for k, text in keys.items()])


def text(thing: object) -> str:
    return f'```text\n{inspect.getdoc(thing)}\n```'


def samplers() -> Iterator[str]:
    yield '## Sampler options'
    yield 'What `sampler = dict(...)` of a generator takes, besides `preset`: the options of `synthaug_plugins.diffusion.sample`.'
    yield text(sample)
    yield 'Presets. FID and network calls per image (NFE) are those that the paper states for its models, not measured here.'
    rows = []
    for name, preset in PRESETS.items():
        options = ', '.join(f'{k}={v!r}' for k, v in preset.options.items())
        published = '; '.join(f'{data}, {model}: {fid} at {calls}' for data, model, fid, calls in preset.published)
        rows.append((f'`{name}`', preset.what, f'`{options}`', published, preset.source))
    yield table(('preset', 'what', 'options', 'published FID at NFE', 'source'), rows)


def page() -> str:
    parts = ['# Reference', 'Made by `python tools/make_reference.py` from the code.', '## Commands', *commands()]
    parts += ['## Keys of a generation recipe', keys_table(KEYS, DEFAULTS), *samplers()]
    parts += ['## Keys of a recipe of `synthaug score`', keys_table(score.KEYS, score.DEFAULTS)]
    parts += ['## Keys of a recipe of `synthaug learn edm`', keys_table(learn_recipe.KEYS, learn_recipe.DEFAULTS)]
    parts += ['### training', text(EDMTraining), '### augment', text(Augmentation)]
    parts += ['## Keys of a recipe of `synthaug learn words`', keys_table(learn_words_recipe.KEYS, learn_words_recipe.DEFAULTS)]
    parts += ['### training', text(WordTraining)]
    parts += ['## Keys of a recipe of `synthaug learn embeddings`', keys_table(learn_embeddings_recipe.KEYS, learn_embeddings_recipe.DEFAULTS)]
    parts += ['### training', text(EmbeddingTraining)]
    parts += ['## Keys of a recipe of `synthaug learn erasure`', keys_table(learn_erasure_recipe.KEYS, learn_erasure_recipe.DEFAULTS)]
    presets = [(f'`{name}`', f'`{", ".join(f"{k}={v!r}" for k, v in options.items())}`') for name, options in ERASURE_PRESETS.items()]
    parts += ['### training', text(ErasureTraining), table(('preset', 'training options'), presets)]
    parts += ['## Keys of a recipe of `synthaug learn minority`', keys_table(learn_minority_recipe.KEYS, learn_minority_recipe.DEFAULTS)]
    parts += ['### classifier', text(LevelClassifier), '### training', text(LevelTraining)]
    parts += ['## Keys of a recipe of `synthaug compare`', options_table(protocol.KEYS)]
    parts += ['### an entry of arms', options_table(protocol.ARM_KEYS), '### an entry of made', options_table(MADE_KEYS)]
    parts += ['### an entry of curves', options_table(CURVE_KEYS)]
    parts.append('## Keys of `synthaug = dict(...)` in a training recipe')
    for key, module in BUILT_IN.items():
        plugin = importlib.import_module(module)
        parts += [f'### {key}', inspect.cleandoc(plugin.__doc__ or ''), options_table(plugin.OPTIONS)]
    parts += ['## timm', '### python -m synthaug_plugins.timm.launch', f'```text\n{timm_launch.__doc__}```']
    parts.append(options_table({f'--synthaug-{name}': text for name, (text, _) in LAUNCHER_OPTIONS.items()}))
    for thing in (create_mixed_dataset, MixedImageDataset, create_mixed_loader, MixedTarget, MixClassificationTask):
        parts += [f'### {thing.__name__}', text(thing)]
    parts += ['## Registry entries', *entries(), '## Hooks', inspect.cleandoc(hookspecs.__doc__ or '')]
    for name, hook in vars(hookspecs).items():
        if name.startswith('synthaug_'):
            parts.append(f'### `{name}`\n\n```text\n{name}({", ".join(inspect.signature(hook).parameters)})\n\n{inspect.getdoc(hook)}\n```')
    return '\n\n'.join(parts) + '\n'


if __name__ == '__main__':
    compat.apply()  # pycocotools may be installed beside
    if '--print' in sys.argv:
        sys.stdout.write(page())
    else:
        TARGET.write_text(page(), encoding='utf-8')
        print(TARGET)
