"""Stages: the trainings that a recipe consists of, read and checked together, before the first of them begins."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins import compat
from synthaug_plugins.errors import RecipeError, SynthAugError, first_line
from synthaug_plugins.recipes import recipe_file
from synthaug_plugins.training.backbone_weights import check_fits, load_backbone, skeleton
from synthaug_plugins.training.key_queue import check_queue
from synthaug_plugins.training.recipe_edit import add_hook, pretrained, type_name
from synthaug_plugins.training.run import KEY, configure, lay_over, load_recipe, own_options

if TYPE_CHECKING:
    import pluggy
    from mmengine.config import Config

BACKBONE = 'backbone.pth'
"""In a stage's folder: what the next one starts from."""
INIT = 'init.pth'
"""In the first stage's folder: the backbone of its `init`."""
SINGLE = 'train'
"""The name of the only stage of a recipe without stages."""


@dataclass(frozen=True)
class Stage:
    """One training of a recipe.

    Attributes:
        name: also of its folder.
        cfg: configured; where its backbone starts from is not in it yet, see `placed`.
        init: a checkpoint for the first stage to start from, or None.
        follows: whether it starts from the stage before.
        ema: whether an average of weights is taken, from there or from `init`.
        may_differ: see `backbone_weights.check_fits`.
        single: whether the recipe is this training, and has no stages.
    """

    name: str
    cfg: Config
    init: str | None = None
    follows: bool = False
    ema: bool = False
    may_differ: tuple[str, ...] = ()
    single: bool = False

    @property
    def backbone(self) -> Mapping[str, Any]:
        """The config of its backbone."""
        return self.cfg.model.backbone

    @property
    def scope(self) -> str:
        """The registry scope of its recipe."""
        return str(self.cfg.get('default_scope') or 'mmpretrain')


def read_stages(
    recipe: str | Path,
    cfg_options: Mapping[str, Any] | None,
    plugin_manager: pluggy.PluginManager,
    extra_options: Mapping[str, Any] | None = None,
) -> tuple[Stage, ...]:
    """The configured trainings of a recipe, in order; a recipe without stages is one, called 'train'.

    Args:
        recipe: see `run.load_recipe`.
        cfg_options: overrides by dotted key. In a recipe with stages each begins with the name of a stage: `{'pretrain.train_cfg.max_epochs': 1}`;
            those that begin with 'synthaug.' change the list of stages itself.
        plugin_manager: from `synthaug_plugins.plugins`.
        extra_options: laid over the `synthaug` dict of a recipe without stages.

    Raises:
        RecipeError: a wrong recipe, stage or option; the stage is named.
    """
    cfg, given = load_recipe(recipe), dict(cfg_options or {})
    entries = plugin_manager.hook.synthaug_stages(cfg=cfg, options=own_options(cfg))
    if entries is None:
        return (Stage(SINGLE, configure(lay_over(cfg, given, str(recipe)), plugin_manager, extra_options), single=True),)
    if extra_options:
        option = next(iter(extra_options))
        raise RecipeError(f'{str(recipe)!r} has stages: which of them {option!r} is for cannot be told.', f'Set NAME.synthaug.{option}... by --cfg-options.')
    ours = {key: given.pop(key) for key in list(given) if key.split('.')[0] == KEY}
    if ours:
        cfg = lay_over(cfg, ours, str(recipe))
        entries = plugin_manager.hook.synthaug_stages(cfg=cfg, options=own_options(cfg))
    options = _by_stage(given, [entry['name'] for entry in entries], str(recipe))
    stages = []
    for number, entry in enumerate(entries):
        try:
            stages.append(_read(entry, number, Path(recipe), options[entry['name']], plugin_manager))
        except SynthAugError as error:
            raise _of_stage(entry['name'], error) from error
    return tuple(stages)


def _by_stage(given: Mapping[str, Any], names: Sequence[str], recipe: str) -> dict[str, dict[str, Any]]:
    """Options from the command line, by the stage that each begins with."""
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in given.items():
        name, _, rest = key.partition('.')
        if name not in options or not rest:
            cure = f'Begin with {" or ".join(names)}, such as {names[0]}.train_cfg.max_epochs=1.'
            raise RecipeError(f'{recipe!r} has stages, and the option {key!r} names none of them.', cure)
        options[name][rest] = value
    return options


def _read(entry: Mapping[str, Any], number: int, beside: Path, options: Mapping[str, Any], plugin_manager: pluggy.PluginManager) -> Stage:
    recipe = recipe_file(entry['recipe'], beside, 'train', 'recipe')
    cfg = load_recipe(recipe)
    if plugin_manager.hook.synthaug_stages(cfg=cfg, options=own_options(cfg)) is not None:
        raise RecipeError(f'{recipe!r} has stages itself.', 'Write its stages into this list.')
    cfg = lay_over(cfg, entry.get('cfg_options') or {}, recipe)
    own = {'exact_resume': {}, **own_options(cfg)}  # a killed stage goes on as if nothing had been
    for key, value in (entry.get('synthaug') or {}).items():
        mine = own.get(key)
        own[key] = {**mine, **value} if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    cfg[KEY] = own
    cfg = lay_over(cfg, options, recipe)  # the command line has the last word
    return Stage(
        entry['name'],
        configure(cfg, plugin_manager),
        entry.get('init') or None,
        number > 0,
        bool(entry.get('ema')),
        tuple(entry.get('may_differ') or ()),
    )


def check_stages(stages: Sequence[Stage], data_too: bool = True, launcher: str = 'none', done: int = 0) -> None:
    """Check before the first stage trains what can be known of all: that they train, build, and fit each other.

    Args:
        stages: from `read_stages`.
        data_too: build the data sets of all stages but the first, too: a folder that is missing is said now, not after days.
        launcher: see `run.train`.
        done: so many of them, from the first one on, have been trained: what they started from need not be there any more.

    Raises:
        RecipeError: with the name of the stage.
        ModelError: `init` is no checkpoint with a backbone, or without the average that `ema` asks for.
    """
    for number, stage in enumerate(stages[done:], done):
        before, after = stages[number - 1] if number else None, stages[number + 1 : number + 2]
        try:
            _check_trains(stage)
            check_queue(stage.cfg, launcher)
            if after:
                _check_saves(stage, after[0].ema)
            if len(stages) > 1 or stage.init:
                _check_start(stage, before)
            if before is not None:
                skeleton(stage.cfg.model, stage.scope)
                if data_too:
                    _build_data(stage)
        except SynthAugError as error:
            raise (error if stage.single else _of_stage(stage.name, error)) from error


def placed(stage: Stage, folder: str, start: str | None, leaves: bool, ema: bool) -> Config:
    """A stage's config with its place among the others: plain entries that any launcher runs.

    Args:
        folder: its work folder.
        start: the file that its backbone starts from, or None.
        leaves: whether it leaves its backbone in its folder for the next stage (or another use).
        ema: whether that is the average of weights.
    """
    cfg = copy.deepcopy(stage.cfg)
    cfg.work_dir = folder
    hook: dict[str, Any] = {'type': 'synthaug_plugins.StageHook'}
    if start is not None:
        # Alone, not beside the recipe's own initialisation: many backbones look for exactly this, and would initialise parts again after it.
        cfg.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': start, 'prefix': 'backbone.'}
        hook |= {'start': start, **({'may_differ': list(stage.may_differ)} if stage.may_differ else {})}
    if leaves:
        hook |= {'leave': BACKBONE, **({'ema': True} if ema else {})}
    if len(hook) > 1:
        add_hook(cfg, hook)
    return cfg


def _of_stage(name: str, error: SynthAugError) -> SynthAugError:
    """The same refusal, of the same kind, with the stage's name."""
    named = copy.copy(error)
    named.what = f'Stage {name!r}: {error.what.removeprefix("synthaug: ")}'
    named.args = (f'{named.what} {named.cure}'.strip(),)
    return named


def _check_trains(stage: Stage) -> None:
    if not stage.cfg.get('train_dataloader') or not stage.cfg.get('train_cfg'):
        raise RecipeError('The recipe has no train_dataloader or no train_cfg.', 'Start from a recipe that trains.')


def _check_saves(stage: Stage, ema: bool) -> None:
    """Refuse a stage that would leave nothing for the next one."""
    hooks = stage.cfg.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint', {})
    if checkpoint is None or not (checkpoint.get('save_last', True) or checkpoint.get('interval', -1) > 0):
        cure = 'Set default_hooks.checkpoint.save_last=True.'
        raise RecipeError('The recipe saves no checkpoint at its end, from which the next stage could start.', cure)
    if ema and all(type_name(hook) != 'EMAHook' for hook in stage.cfg.get('custom_hooks') or []):
        raise RecipeError('The next stage starts from an average of its weights, and it keeps none.', "Add custom_hooks=[dict(type='EMAHook')], or remove ema.")


def _check_start(stage: Stage, before: Stage | None) -> None:
    """Refuse a stage whose backbone does not fit what it starts from, or that would start from something else as well."""
    model = stage.cfg.get('model') or {}
    if not model.get('backbone'):
        raise RecipeError('The recipe has no model.backbone, which stages hand on.', 'Give a recipe whose model has a backbone.')
    if not stage.follows and stage.init is None:
        return
    _refuse_second_start(stage)
    if stage.init is not None:
        check_fits(load_backbone(stage.init, stage.ema), stage.backbone, stage.may_differ, stage.scope)
    elif before is not None:
        weights = skeleton(before.backbone, before.scope).state_dict()
        try:
            check_fits(weights, stage.backbone, stage.may_differ, stage.scope)
        except RecipeError as error:
            what = error.what.replace('in the checkpoint', f'in stage {before.name!r}').replace('in the recipe', 'here')
            raise RecipeError(what, error.cure) from error


def _refuse_second_start(stage: Stage) -> None:
    cfg = stage.cfg
    places: dict[str, Any] = {'load_from': cfg.get('load_from'), 'resume': cfg.get('resume'), 'model.pretrained': cfg.model.get('pretrained')}
    places |= {f'model.backbone.{key}': cfg.model.backbone.get(key) for key in ('pretrained', 'checkpoint_path')}
    for where, part in (('model', cfg.model), ('model.backbone', cfg.model.backbone)):
        places[f'{where}.init_cfg'] = (pretrained(part) or {}).get('checkpoint')
    found = next((key for key, value in places.items() if value), None)
    if found is not None:
        source = f'the checkpoint {stage.init!r}' if stage.init else 'the stage before'
        raise RecipeError(f'The recipe starts from {found} = {places[found]!r}, and from {source}.', f'Set {found}=None, or train it without stages.')


def _build_data(stage: Stage) -> None:
    """Build the data sets that a later stage will need, and forget them."""
    compat.apply()
    from mmengine.registry import DATASETS, DefaultScope

    with DefaultScope.overwrite_default_scope(stage.scope):
        for key in ('train_dataloader', 'val_dataloader'):
            dataset = (stage.cfg.get(key) or {}).get('dataset')
            if dataset is None:
                continue
            try:
                built = DATASETS.build(copy.deepcopy(dataset))
                if hasattr(built, 'full_init'):
                    built.full_init()
            except SynthAugError:
                raise
            except Exception as error:  # a data set is foreign code
                raise RecipeError(f'{key}.dataset cannot be read: {type(error).__name__}: {first_line(error)}.', 'Correct its folders and files.') from error
