"""Learn how rare images are: from a recipe to a classifier of levels that guides generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device
from synthaug_plugins.diffusion import MiddleFeatures, build_level_classifier
from synthaug_plugins.engine.learn_folder import LearnFolder
from synthaug_plugins.engine.learn_minority_recipe import MinorityRun, decisive, prepare_minority, read_scores
from synthaug_plugins.engine.minority_output import VALIDATION, by_chance, write_validation
from synthaug_plugins.engine.progress import TrainingProgress
from synthaug_plugins.engine.score_folder import score_folder
from synthaug_plugins.learning.checkpoint import saved_step
from synthaug_plugins.learning.data import decode
from synthaug_plugins.learning.minority import LevelAccuracy, RatedImages, TrainedLevels, split_levels, train_levels, validate_levels
from synthaug_plugins.models.levels import Levels, assign_levels
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.weights import save_model

FOLDER, SCORES, LEVELS = 'model', 'scores.parquet', 'levels.parquet'
"""Of the classifier, the scores of the images and their levels, in the folder of a run."""
_MOST_VALIDATED = 2000
"""Images that the accuracy is taken from, each at every noise level."""


def learn_minority(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', quiet: bool = False) -> Path:
    """Score the images of a complete recipe, rank them into levels and train a classifier of these into the folder `out`; continue a run that is there.

    The folder receives model/ (for the option `classifier` of guidance), scores.parquet, levels.parquet (id, class_name, score, level, validation: whether
    the classifier was not trained on it), validation.csv and .png, data/ (the decoded images) and checkpoints/.

    Args:
        recipe: as `engine.learn_minority_recipe.load_minority_recipe` returns it.
        out: new, empty, or the folder of an earlier call with a recipe that differs in names and memory only.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.

    Returns: the folder of the classifier.

    Raises:
        RecipeError, DataError, ModelError: see `prepare_minority`, `score_folder` and `train_levels`; or `out` lies within the images, is not ours, or holds a
            run of another recipe or other images; or `scores` are of other options.
        StoreError: the disk is full; the last checkpoint is sound.
        Stopped: Ctrl-C.
    """
    folder, where = Path(out).expanduser(), choose_device(device)
    run = prepare_minority(recipe)
    refuse_among_images(folder, run.real_images.root)
    ours = LearnFolder(folder, 'minority', run.recipe, decisive)
    with ours.at_work(lambda: _how_far(folder, run)):
        return _Learning(run, folder, ours, where, device).learn(quiet)


def save_stand_in(run: MinorityRun, folder: Path, classes: Sequence[str] = ()) -> None:
    """Write a classifier of zeros in place of the one that a run will learn: what uses it can be checked before there is any.

    Args:
        folder: in place of `FOLDER` of the run.
        classes: to know besides those of the run.
    """
    config = {**run.config, 'classes': list(dict.fromkeys([*run.config['classes'], *(() if run.config['label_conditioning'] else classes)]))}
    count, rank = config['levels']['count'], run.recipe['levels']['rank']
    limits = tuple(map(float, range(count - 1)))
    levels = Levels(count, rank, dict.fromkeys(config['classes'], limits) if rank == 'class' else limits)
    with torch.device('meta'):
        weights = build_level_classifier(config).state_dict()
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in weights.items()}
    # Rare images are fewer: what fills up the levels of a class has something to fill.
    counts = {name: [count - level for level in range(count)] for name in config['classes']}
    _save(run, folder, config, levels, counts, zeros, {'what': 'stand-in without training'})


def _save(
    run: MinorityRun,
    folder: Path,
    config: Mapping[str, Any],
    levels: Levels,
    counts: Mapping[str, Sequence[int]],
    weights: Mapping[str, torch.Tensor],
    card: Any,
) -> None:
    whole = {**config, 'levels': levels.to_json(), 'counts': counts, 'scored_by': run.scorer.scored_by(), 'found_at': run.found_at}
    common = {'name': run.recipe['name'] or folder.absolute().parent.name, 'licence': run.recipe['licence'], 'made_by': f'synthaug_plugins {__version__}'}
    save_model(folder, whole, weights, {**common, **card})


def _how_far(folder: Path, run: MinorityRun) -> str:
    return f'has seen {saved_step(folder / "checkpoints") * run.options.batch_size:,} images'


class _Learning:
    """One call of `learn_minority`, from the checked recipe on."""

    def __init__(self, run: MinorityRun, folder: Path, ours: LearnFolder, device: torch.device, device_name: str) -> None:
        self.run, self.folder, self.ours, self.device, self.device_name = run, folder, ours, device, device_name
        self.ids = [i for name in run.classes for i in run.real_images.ids(name)]
        self.names = [name for name in run.classes for _ in run.real_images.ids(name)]

    def learn(self, quiet: bool) -> Path:
        """Learn to the end and write the results."""
        run, config = self.run, self.run.config
        images = decode(run.real_images, run.classes, config['resolution'], config['channels'], self.folder / 'data')
        self.ours.remember_data(images.sha256)
        scores = self._scores(quiet)
        by_class = run.recipe['levels']['rank'] == 'class'
        levels, limits = assign_levels(scores, config['levels']['count'], run.recipe['seed'], self.names if by_class else None)
        config = {**config, 'levels': limits.to_json()}
        labels = np.array([config['classes'].index(name) for name in self.names]) if config['label_conditioning'] else None
        rated = RatedImages(images.pixels, levels, labels)
        _, validation = split_levels(levels, run.options.validation, run.options.seed)
        self._write_levels(scores, levels, validation)
        features = None
        if run.feature_model is not None:
            features = MiddleFeatures(run.feature_model.load(self.device, torch.float32))
        with nullcontext() if quiet else TrainingProgress(run.options.images_shown) as progress:
            trained = train_levels(
                rated, config, run.options, self.folder / 'checkpoints', self.device, features=features, on_step=progress.step if progress else None
            )
        sigmas = np.geomspace(config['sigma_min'], config['sigma_max'], run.options.validation_sigmas).tolist()
        seen = np.sort(np.random.default_rng(run.options.seed).permutation(validation)[:_MOST_VALIDATED])
        found = validate_levels(trained.classifier, rated, seen, sigmas, run.options.seed, self.device)
        chance = by_chance(levels[seen])
        title = f'{run.recipe["name"] or self.folder.name}: {limits.count} levels, {len(seen):,} validation images'
        write_validation(self.folder, found, chance, title)
        card = self._card(images.sha256, trained, found, chance, len(seen))
        _save(run, self.folder / FOLDER, run.config, limits, self._counts(levels), trained.classifier.state_dict(), card)
        return self.folder / FOLDER

    def _scores(self, quiet: bool) -> np.ndarray:
        """(N,) minority scores in the order of the ids; scored now where no file has them."""
        run, given = self.run, self.run.recipe['scores']
        path = self.folder / SCORES if given is None else Path(given).expanduser()
        if given is None and not path.is_file():
            score_folder(run.real_images.root, run.score_recipe, path, self.device_name, classes=run.classes, quiet=quiet)
        known = read_scores(path, run.scorer, run.real_images)
        return np.array([known[i] for i in self.ids], np.float64)

    def _write_levels(self, scores: np.ndarray, levels: np.ndarray, validation: np.ndarray) -> None:
        held_out = np.zeros(len(levels), bool)
        held_out[validation] = True
        table = pa.table({'id': self.ids, 'class_name': self.names, 'score': scores, 'level': levels, 'validation': held_out})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_whole(self.folder / LEVELS, sink.getvalue().to_pybytes())

    def _counts(self, levels: np.ndarray) -> dict[str, list[int]]:
        """Class -> images of each level, those for validation too: what the data hold."""
        names, count = np.array(self.names), self.run.config['levels']['count']
        return {name: np.bincount(levels[names == name], minlength=count).tolist() for name in self.run.config['classes']}

    def _card(self, sha256: str, trained: TrainedLevels, found: Sequence[LevelAccuracy], chance: Mapping[str, float], validated: int) -> dict[str, Any]:
        run = self.run
        return {
            'what': f'classifier of {run.config["levels"]["count"]} levels of rarity for noisy images of {run.config["resolution"]} pixels (Um et al. 2024)',
            'model': run.model.origin(),
            'data': {'sha256': sha256, 'images': len(self.ids), 'ranked': run.recipe['levels']['rank']},
            'training': {
                'parameters': sum(p.numel() for p in trained.classifier.parameters()),
                'steps': trained.steps,
                'options': asdict(run.options),
                'loss_curve': trained.losses,
            },
            VALIDATION: {'images': validated, 'chance': chance, 'by_sigma': [asdict(row) for row in found]},
        }
