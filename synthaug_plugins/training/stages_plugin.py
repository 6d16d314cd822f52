"""`synthaug = dict(stages=[dict(name='pretrain', recipe=...), dict(name='finetune', recipe=...)])`: one training after the other, the backbone handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from mmengine.config import Config

KEY = 'stages'
OPTIONS = {
    'name': "of the stage and of its folder in the work folder: letters, digits, '_' and '-'",
    'recipe': 'an ordinary training recipe: a file relative to this one, a shipped recipe by name, or mmpretrain::CONFIG',
    'cfg_options': "values of that recipe by dotted key, such as {'train_cfg.max_epochs': 90}; on the command line NAME.train_cfg.max_epochs=90",
    'synthaug': "laid over the recipe's own synthaug dict, key by key, such as dict(mix=dict(store=...))",
    'init': 'of the first stage: a checkpoint of the same backbone to start from, such as one trained on real images; default: as its recipe says. '
    'The others start from the stage before',
    'ema': "start from the average that the stage before (or init's training) kept by EMAHook, default False: from what its optimiser left",
    'may_differ': "regular expressions for weights of the backbone that may be absent on either side; they start as torch makes them, without the backbone's "
    'own initialisation',
}
"""Keys of an entry of `stages`."""
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    'name': (str, 'Give text.'),
    'recipe': (str, 'Give a file, a shipped recipe by name, or mmpretrain::CONFIG.'),
    'cfg_options': (Mapping, 'Give a dict by dotted key.'),
    'synthaug': (Mapping, 'Give a dict.'),
    'init': (str, 'Give a checkpoint file.'),
    'ema': (bool, 'Give True or False.'),
    'may_differ': ((list, tuple), 'Give a list of regular expressions.'),
}
# What would be ignored if it stood beside the stages.
_TRAINS = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader', 'test_dataloader', 'custom_hooks', 'load_from')


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `stages`."""
    return (KEY,)


@hookimpl(trylast=True)  # a package's plugin may read the stages in its own way
def synthaug_stages(cfg: Config, options: dict[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The entries of `stages`, checked for keys and kinds."""
    given = options.get(KEY)
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not given:
        raise RecipeError(f'synthaug: stages = {given!r} is not a list of stages.', "Write stages=[dict(name='pretrain', recipe=...), ...].")
    others = [key for key in options if key != KEY]
    if others:
        raise RecipeError(f'synthaug: {others[0]!r} stands beside stages, where it has no meaning.', f'Write it into a stage: synthaug=dict({others[0]}=...).')
    stray = [key for key in _TRAINS if cfg.get(key)]
    if stray:
        raise RecipeError(f'The recipe has {stray[0]} beside stages, where it has no meaning.', "Put it into the stages' own recipes, or into cfg_options.")
    for number, stage in enumerate(given):
        _check(number, stage)
        if number and stage.get('init'):
            raise RecipeError(f'synthaug: stages[{number}] has an init, but it starts from the stage before.', 'Remove init, or make it the first stage.')
        if stage.get('ema') and not number and not stage.get('init'):
            raise RecipeError('synthaug: stages[0] has ema, but no init whose average could be taken.', 'Move ema to the stage that starts from an average.')
    names = [stage['name'] for stage in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f'synthaug: two stages are called {twice!r}.', 'Give each its own name: it is the name of its folder.')
    return [dict(stage) for stage in given]


def _check(number: int, stage: Any) -> None:
    where = f'synthaug: stages[{number}]'
    if not isinstance(stage, Mapping):
        raise RecipeError(f'{where} = {stage!r} is not a dict.', "Write dict(name='pretrain', recipe=...).")
    for key, value in stage.items():
        if key not in OPTIONS:
            raise RecipeError(f'{where} has no key {key!r}.', nearest(str(key), OPTIONS))
        kind, cure = _KINDS[key]
        if value is not None and not isinstance(value, kind):
            raise RecipeError(f'{where}: {key} = {value!r} is of the wrong kind.', cure)
    for key in ('name', 'recipe'):
        if not stage.get(key):
            raise RecipeError(f'{where} has no {key}.', f'Add {key}: {OPTIONS[key]}.')
    name = stage['name']
    if not name.replace('_', '').replace('-', '').isalnum() or not name.isascii() or name.startswith('-'):
        raise RecipeError(f'{where}: the name {name!r} cannot be that of a folder and of an option.', "Use letters, digits, '_' and '-'.")


@hookimpl(tryfirst=True)
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Refuse stages where one training is configured; `stages.read_stages` takes them apart before."""
    if options.get(KEY) is not None:
        raise RecipeError(
            'synthaug: a recipe with stages is several trainings, and one is wanted here.', "Name one of the stages' recipes, or use `synthaug train`."
        )
    options.pop(KEY, None)
