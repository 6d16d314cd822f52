"""The launcher's options, among those of train.py: so they stand in its help, its YAML files, its args.yaml and its checkpoints."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.mixing.rule import MODES, MixRule, mix_rule
from synthaug_plugins.mixing.synthetic import SOURCES

PREFIX = 'synthaug_'
# option: (help, options of add_argument)
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    'mix': ('folder of the store to draw from, or several', {'nargs': '+', 'metavar': 'STORE'}),
    'store-weights': ('shares of the draws, one per store (default: equal)', {'nargs': '+', 'type': float, 'metavar': 'W'}),
    'select': ("which records, such as 'clip_p > 0.1' (default: every image that was kept)", {'metavar': 'CONDITION'}),
    'mode': (', '.join(MODES) + ' (default: per_sample)', {}),
    'alpha': ('per_sample, phased: share of synthetic images (default: 0.5), or a schedule: "[(0, 0.0), (10, 0.5)]", "{\'start\': 0, ...}"', {}),
    'partner': ("what takes a real image's place: source, class (default) or any", {}),
    'ratio': ('per_batch, two_stream: real and synthetic (default: 1 1)', {'nargs': 2, 'type': int, 'metavar': ('REAL', 'SYNTHETIC')}),
    'phases': ('phased: what and for how many epochs, such as synthetic:30 real:30', {'nargs': '+', 'metavar': 'WHAT:EPOCHS'}),
    'weight': ('factor on the loss of synthetic images (default: 1)', {'type': float}),
    'soft-labels': ("the store's column with class probabilities, or with logits beside --synthaug-temperature", {'metavar': 'COLUMN'}),
    'blend': ('share of the soft label in the target (default: 1)', {'type': float}),
    'temperature': ('what the logits of the column are divided by', {'type': float}),
    'sources': ('; '.join(f'{key}: {text}' for key, text in SOURCES.items()), {}),
    'source-root': ("folder that the variants' sources are relative to (default: the training folder)", {'metavar': 'FOLDER'}),
    'classes': ('class names in label order, for data sets that name none', {'nargs': '+', 'metavar': 'NAME'}),
    'epoch-steps': ("batches per epoch, or 'synthetic': as many as one pass over the synthetic images takes (default: a pass over the real ones)", {}),
    'seed': ("of the batches (default: train.py's --seed)", {'type': int}),
    'frozen-bn': ('keep BatchNorm statistics; with regular expressions, those of the layers in whose names one is found', {'nargs': '*', 'metavar': 'REGEX'}),
    'freeze-affine': ('with --synthaug-frozen-bn: keep scale and shift too', {'action': 'store_true', 'default': None}),
}
_MIX_ONLY = tuple(name for name in OPTIONS if name not in ('mix', 'frozen-bn', 'freeze-affine'))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the launcher's group to train.py's parser."""
    group = parser.add_argument_group('Synthetic images (synthaug_plugins.timm.launch)')
    for name, (text, kind) in OPTIONS.items():
        shown = {} if 'action' in kind else {'metavar': 'VALUE'}
        group.add_argument(f'--synthaug-{name}', help=text.replace('%', '%%'), **{**shown, **kind})


@dataclass(frozen=True)
class Options:
    """What the command line asks of the launcher.

    Attributes:
        stores: entries as `MixedImageDataset` takes them; empty for frozen BatchNorm alone.
        rule: the mode with its options, checked.
        mix: arguments of `create_mixed_loader` beside those of timm.
        data: arguments of `create_mixed_dataset` beside real set and stores.
        task: arguments of `MixClassificationTask` beside those of timm.
    """

    stores: list[dict[str, Any]]
    rule: MixRule
    mix: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)

    @property
    def soft(self) -> bool:
        """Whether soft labels are used."""
        return self.data.get('soft_labels') is not None

    @property
    def needs_task(self) -> bool:
        """Whether the loss, or the model in training, has to be another than timm's."""
        return self.rule.weighs or self.soft or bool(self.task.get('frozen_bn') is not None)


def read_options(args: argparse.Namespace) -> Options:
    """The checked options of a parsed command line.

    Raises:
        RecipeError: a value that is none, options that do not fit together, or nothing to do.
    """
    given = {name: getattr(args, PREFIX + name.replace('-', '_')) for name in OPTIONS}
    unknown = [key for key in vars(args) if key.startswith(PREFIX) and key.removeprefix(PREFIX).replace('_', '-') not in OPTIONS]
    if unknown:  # train.py takes any key of a YAML file
        raise RecipeError(f'There is no option {unknown[0]}.', nearest(unknown[0], [PREFIX + name.replace('-', '_') for name in OPTIONS]))
    if isinstance(given['frozen-bn'], bool):  # of a YAML file of train.py, as the next ones may be
        given['frozen-bn'] = [] if given['frozen-bn'] else None
    for name, (_, kind) in OPTIONS.items():
        if 'nargs' in kind and given[name] is not None and not isinstance(given[name], list):
            given[name] = [given[name]]
    if given['mix'] is None:
        idle = [name for name in _MIX_ONLY if given[name] is not None]
        if idle:
            raise RecipeError(f'--synthaug-{idle[0]} has no meaning without --synthaug-mix.', 'Give --synthaug-mix STORE.')
        if given['frozen-bn'] is None and not given['freeze-affine']:
            raise RecipeError('No --synthaug option asks for anything.', 'Give --synthaug-mix STORE, or start train.py itself.')
    mix = {
        'mode': given['mode'] or 'per_sample',
        'alpha': _literal(given['alpha']),
        'partner': given['partner'],
        'ratio': given['ratio'],
        'phases': _phases(given['phases']),
        'synthetic_weight': 1.0 if given['weight'] is None else given['weight'],
    }
    rule = mix_rule(**mix)
    mix |= {'epoch_steps': _steps(given['epoch-steps']), 'seed': args.seed if given['seed'] is None else given['seed']}
    data = {'classes': given['classes'], 'concat': rule.mode == 'concat', 'sources': given['sources'], 'source_root': given['source-root']}
    data['soft_labels'] = _soft(given)
    task: dict[str, Any] = {}
    if given['frozen-bn'] is not None:
        task = {'frozen_bn': given['frozen-bn'] or True, 'freeze_affine': bool(given['freeze-affine'])}
    elif given['freeze-affine']:
        raise RecipeError('--synthaug-freeze-affine has no meaning without --synthaug-frozen-bn.', 'Give both.')
    return Options(_stores(given), rule, mix, data, task)


def _stores(given: dict[str, Any]) -> list[dict[str, Any]]:
    folders = given['mix'] or []
    weights = given['store-weights'] or [1.0] * len(folders)
    if len(weights) != len(folders):
        raise RecipeError(f'--synthaug-store-weights gives {len(weights)} shares for {len(folders)} stores.', 'Give one per store.')
    return [{'store': store, 'weight': weight, 'select': given['select']} for store, weight in zip(folders, weights, strict=True)]


def _literal(value: Any) -> Any:
    """A number or a schedule: in a YAML file of train.py it is one already."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise RecipeError(f'--synthaug-alpha = {value!r} is neither a number nor a schedule.', 'Write 0.5, or "[(0, 0.0), (10, 0.5)]".') from error


def _phases(value: Sequence[Any] | None) -> list[tuple[str, int]] | None:
    if value is None:
        return None
    phases = []
    for phase in value:
        what, colon, epochs = str(phase).partition(':')
        if not colon or not epochs.isdecimal():
            raise RecipeError(f'--synthaug-phases: {phase!r} is no phase.', 'Write what and for how many epochs: synthetic:30 real:30.')
        phases.append((what, int(epochs)))
    return phases


def _steps(value: Any) -> int | str | None:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _soft(given: dict[str, Any]) -> dict[str, Any] | None:
    if given['soft-labels'] is None:
        idle = next((name for name in ('blend', 'temperature') if given[name] is not None), None)
        if idle:
            raise RecipeError(f'--synthaug-{idle} has no meaning without --synthaug-soft-labels.', 'Give --synthaug-soft-labels COLUMN.')
        return None
    return {'column': given['soft-labels'], 'blend': 1.0 if given['blend'] is None else given['blend'], 'temperature': given['temperature']}
