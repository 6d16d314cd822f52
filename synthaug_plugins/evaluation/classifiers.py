"""Classification accuracy score: a classifier trained on one set alone, tested on held-out real images (Ravuri and Vinyals, NeurIPS 2019).

An ordinary trainer recipe and MMPretrain's own Runner; the real images train one too, to compare with. Every training takes as many optimiser steps,
nothing is chosen: the weights after the last step are tested once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import DataError, RecipeError, Stopped
from synthaug_plugins.evaluation.fingerprint import run_key
from synthaug_plugins.evaluation.metrics.held_out import RightAnswers
from synthaug_plugins.evaluation.metrics.sets import ImageSet
from synthaug_plugins.evaluation.pool import Pool, Task
from synthaug_plugins.evaluation.recipe_folders import set_folders
from synthaug_plugins.evaluation.runs import TRAINED, planned_steps, settle, train_test_run
from synthaug_plugins.own_folder import alone
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.training.run import configure, load_recipe, own_options

if TYPE_CHECKING:
    import pluggy
    from mmengine.config import Config

CLASSIFIERS = 'classifiers'
"""A folder with one per training, named by all that decides it."""
_CHANGE_THE_SET = ('mix', 'train_on', 'transform', 'stages')


@dataclass(frozen=True)
class Classifiers:
    """How classifiers are trained.

    Attributes:
        recipe: a trainer recipe, or MMPretrain's own as `mmpretrain::...`, whose loaders read folders of class folders; those are set here.
        out: the folder of results. A training that is done is not done again; one that was killed starts again.
        plugin_manager: its plugins edit the recipe.
        cfg_options: changes to the recipe, by dotted key.
        setup: called once in the process that trains, so that nouns of plugins are known there; a function at the top of a module.
        progress: takes a line per training.
    """

    recipe: str
    out: Path
    plugin_manager: pluggy.PluginManager
    cfg_options: Mapping[str, Any] = field(default_factory=dict)
    setup: Callable[[], object] | None = None
    progress: Callable[[str], None] = print

    def prepare(self, real: RealImages, real_name: str, held_out: RealImages, made: Sequence[ImageSet]) -> Trainings:
        """Read, configure and check every training. Nothing is trained.

        Args:
            real: what the first classifier trains on.
            real_name: what results call it.
            held_out: what all are tested on.
            made: selections of stores.

        Raises:
            RecipeError: a recipe that cannot be set to these folders, or changes its own training set; unequal optimiser steps.
            DataError: other classes, or another order of them.
        """
        classes = real.classes
        for name, others in [('The held-out images', held_out.classes), *((f'The store {one.name!r}', one.classes) for one in made)]:
            if set(others) != set(classes):
                differ = sorted(set(others) ^ set(classes))
                what = f'{name} and the real images differ in their classes: {differ[0]!r} is in one of them only ({len(differ)} are).'
                raise DataError(what, 'A classifier is tested on what it was trained to tell apart: give all the same classes, or leave --cas out.')
            if others != classes:
                first = next((a, b) for a, b in zip(others, classes, strict=True) if a != b)
                what = f'{name} has the classes in another order than folders have: {first[0]!r} where those have {first[1]!r}.'
                raise DataError(what, f'Generate it with --cfg-options "classes={list(classes)}", or leave --cas out.')
        for one in made:
            if missing := sorted(set(classes) - set(one.class_names)):
                what = f'{one.name!r} has no images of {", ".join(map(repr, missing[:6]))}, {len(missing)} classes of {len(classes)}.'
                raise DataError(what, 'A classifier cannot learn a class without images: loosen the condition (--where), or leave --cas out.')
        configs = {real_name: self._config(real, held_out, None)}
        configs.update((one.name, self._config(real, held_out, one)) for one in made)
        steps = {name: planned_steps(cfg) for name, cfg in configs.items()}
        if len(set(steps.values())) > 1:
            numbers = '; '.join(f'{n} ({name})' for name, n in steps.items())
            raise RecipeError(
                f'The classifiers do not take equal optimiser steps: {numbers}.',
                'Count in iterations (train_cfg = dict(by_epoch=False, max_iters=...)), or select equally many images.',
            )
        return Trainings(self, configs, steps[real_name])

    def _config(self, real: RealImages, held_out: RealImages, made: ImageSet | None) -> Config:
        """The settled recipe of one training: on the real images, or on a store."""
        cfg = load_recipe(self.recipe, self.cfg_options)
        for key in _CHANGE_THE_SET:
            if key in own_options(cfg):
                raise RecipeError(f'The recipe {self.recipe!r} has synthaug.{key}, which changes what is trained on.', 'Give the recipe without it.')
        set_folders(cfg, {'train': real.root.resolve(), 'test': held_out.root.resolve()}, len(real.classes), 'A classifier trains, then is tested.')
        extra = {} if made is None else {'train_on': {'store': made.folder, 'select': made.where}}
        return settle(configure(cfg, self.plugin_manager, extra), (cfg.get('randomness') or {}).get('seed') or 0, choose=False)


@dataclass(frozen=True)
class Trainings:
    """Checked trainings.

    Attributes:
        how: they are trained.
        configs: by what results call each.
        steps: optimiser steps of each.
    """

    how: Classifiers
    configs: Mapping[str, Config]
    steps: int

    def plain(self) -> dict[str, Any]:
        """What decides them, as JSON."""
        return {'recipe': self.how.recipe, 'cfg_options': dict(self.how.cfg_options), 'steps': self.steps}

    def run(self) -> dict[str, RightAnswers]:
        """Train and test what is not done yet, one after the other, in a process of its own.

        Raises:
            RunFailed: a training failed; its log is named.
            RecipeError: another process trains in the folder, or one took other steps than planned.
            Stopped: Ctrl-C; trainings that are done are kept.
        """
        out, listings = self.how.out, dict[str, str]()
        files = {name: out / CLASSIFIERS / run_key(cfg, listings) / TRAINED for name, cfg in self.configs.items()}
        missing = {file: name for name, file in files.items() if not file.exists()}
        tasks = [Task(f'CAS, {name}', file.parent / 'log.txt', train_test_run, (self.configs[name], file.parent, self.steps)) for file, name in missing.items()]
        with alone(out, 'evaluation'), Pool(1, self.how.setup) as pool, _stopped(out):
            pool.run(tasks, lambda label, result: self.how.progress(f'{label}: {result["top1"]:.1f} % after {self.steps} steps, {result["seconds"]:.0f} s'))
        return {name: _counted(json.loads(file.read_text(encoding='utf-8'))) for name, file in files.items()}


@contextmanager
def _stopped(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f'Stopped: classifiers that are done stay in {str(out)!r}.', 'The same command goes on.') from None


def _counted(result: Mapping[str, Any]) -> RightAnswers:
    """Right answers as counts; recall is given in percent."""
    images = np.array(result['support'], int)
    return RightAnswers(np.rint(np.array(result['recall']) * images / 100).astype(int), images)
