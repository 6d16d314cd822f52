"""Recipes of `synthaug learn minority`: their keys, and the checked run that they become. No weights load here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from synthaug_plugins.curation.minority_score import MinorityScore
from synthaug_plugins.diffusion import build_level_classifier
from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.engine.recipe_checks import check_dict, check_learn_keys, check_names, check_texts, named_data, plain_data
from synthaug_plugins.engine.score_folder import read_folder_scores
from synthaug_plugins.errors import DataError, ModelError, RecipeError, nearest
from synthaug_plugins.learning.checks import check_seed, check_whole
from synthaug_plugins.learning.data import check_classes
from synthaug_plugins.learning.minority_options import FREE, LevelTraining, check_level_training, sigma_range
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.levels import check_rank, propose_level_count
from synthaug_plugins.models.text_model import open_model
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import INSPECTORS, build_strict
from synthaug_plugins.store.table import made_by_of

KEYS = {
    'model': 'the denoiser that scores the images, and that the classifier will guide: `embedded:NAME` or a model folder of our own',
    'data': 'folder of images, one folder per class; --data on the command line sets it',
    'classes': 'class names in label order; default: the class folders of data in sorted order',
    'score': 'dict(sigma=6.5, draws=5, distance=..., batch_size=64): the options of MinorityScore except model and levels; and images per call',
    'scores': 'a file of `synthaug score FOLDER` with these very options, in place of scoring again; or None',
    'levels': "dict(count=None, rank='all'): how many levels (None: about 50 images a level, 2 to 100) and whether an image is ranked among 'all' or within "
    "its 'class'",
    'classifier': "dict(label_conditioning=False, features=None, sigma_data=None, loss='ordinal', ...): whether it is told the class; what it looks at, None "
    "for images, 'model' for features of the model itself, or the name of another denoiser of ours; sigma_data=None for the model's own; and the options of "
    'LevelClassifier',
    'training': 'dict(images_shown=..., ...): attributes of LevelTraining except seed, in place of its defaults',
    'seed': 'a whole number; the same seed, recipe and data give the same levels and weights (to the bit on a CPU)',
    'name': 'name of the classifier, for its card',
    'licence': 'licence of the weights, for the card',
}
DEFAULTS: dict[str, Any] = {
    **{'data': None, 'classes': None, 'score': {}, 'scores': None, 'levels': {}, 'classifier': {}, 'training': {}},
    **{'seed': 0, 'name': None, 'licence': None},
}
SCORE_DEFAULTS: dict[str, Any] = {'batch_size': 64}
LEVELS_DEFAULTS: dict[str, Any] = {'count': None, 'rank': 'all'}
CLASSIFIER_DEFAULTS: dict[str, Any] = {'label_conditioning': False, 'features': None, 'sigma_data': None}
_OF_THE_MODEL = 'model'
_SCORE = 'minority_score'
_TRAINING = {f.name for f in fields(LevelTraining)} - {'seed'}


@dataclass(frozen=True)
class MinorityRun:
    """A checked recipe, ready to learn.

    Attributes:
        recipe: complete; plain JSON.
        model: the denoiser, without its weights.
        feature_model: whose features the classifier looks at, without its weights; `model` itself where these are shared; None for images.
        real_images: the data folder.
        classes: names of the class folders.
        scorer: what scores them.
        config: of the classifier, see `diffusion.build_level_classifier`; of its levels only the count is known yet.
        options: see `LevelTraining`.
    """

    recipe: dict[str, Any]
    model: DenoiserModel
    feature_model: DenoiserModel | None
    real_images: RealImages
    classes: tuple[str, ...]
    scorer: MinorityScore
    config: dict[str, Any]
    options: LevelTraining

    @property
    def found_at(self) -> str | None:
        """Where a classifier that looks at features of another denoiser than `model` finds it."""
        return None if self.feature_model in (None, self.model) else str(self.recipe['classifier']['features'])

    @property
    def score_recipe(self) -> dict[str, Any]:
        """What scores the images, as a score recipe says it."""
        return {'inspectors': [_inspector(self.recipe)], 'data': None, 'batch_size': self.recipe['score']['batch_size']}


def load_minority_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`read_recipe` and `complete_minority_recipe`.

    Raises:
        RecipeError: see there.
    """
    return complete_minority_recipe(read_recipe(path, options))


def complete_minority_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every key set and checked, as far as that needs neither model nor data.

    Raises:
        RecipeError: unknown or missing key, a value of the wrong kind or out of range; the key is named.
    """
    check_learn_keys(recipe, KEYS, 'learn levels of rarity')
    if not isinstance(recipe.get('model'), str):
        raise RecipeError(f'model = {recipe.get("model")!r} is no name of a denoiser.', "Write model = 'embedded:digits_edm'.")
    done = {**DEFAULTS, **recipe}
    for key, known in (('score', None), ('classifier', None), ('levels', LEVELS_DEFAULTS), ('training', _TRAINING)):
        check_dict(key, done[key], known)
    for name in ('type', 'model', 'levels'):
        if name in done['score']:
            raise RecipeError(f'score has the key {name!r}, which follows from the rest of the recipe.', f'Remove score.{name}.')
    done['score'] = {**SCORE_DEFAULTS, **done['score']}
    check_whole('score.batch_size', done['score']['batch_size'])
    done['levels'] = {**LEVELS_DEFAULTS, **done['levels']}
    done['classifier'] = {**CLASSIFIER_DEFAULTS, **done['classifier']}
    count, classifier = done['levels']['count'], done['classifier']
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 2):
        raise RecipeError(f'levels.count = {count!r} is no number of levels.', 'Use a whole number of at least 2, or None.')
    check_rank(done['levels']['rank'])
    if not isinstance(classifier['label_conditioning'], bool):
        raise RecipeError(f'classifier.label_conditioning = {classifier["label_conditioning"]!r} is neither True nor False.', 'Correct it.')
    if classifier['features'] is not None and not isinstance(classifier['features'], str):
        raise RecipeError(f'classifier.features = {classifier["features"]!r} is no text.', "Use None, 'model', or the name of a denoiser of our own.")
    if done['classes'] is not None:
        check_names('classes', done['classes'])
    check_texts(done, 'data', 'scores', 'name', 'licence')
    check_seed(done['seed'])
    done = plain_data(done)
    check_level_training(training_options(done))
    return done


def training_options(recipe: Mapping[str, Any]) -> LevelTraining:
    """The training options of a complete recipe."""
    return LevelTraining(**recipe['training'], seed=recipe['seed'])


def prepare_minority(recipe: Mapping[str, Any]) -> MinorityRun:
    """Check a complete recipe against its model and its images: everything that can be refused before weights load.

    Raises:
        RecipeError: no data, an option that the model cannot serve, or `scores` that something else made.
        DataError: `scores` that are none, classes that are not those of the folder, one that is unknown to the model, or too few images for the levels.
        ModelError: a model that cannot be had, works in latents, or has no features; options that make no classifier.
    """
    real_images = RealImages(named_data(recipe))
    classes = tuple(recipe['classes'] or real_images.classes)
    check_classes(real_images, classes)
    model = _open(recipe['model'], 'model')
    feature_model = _feature_model(recipe, model)
    # The classes that a network beside it is told, in the order of that network: its labels are the classifier's.
    told = [each for each in (model, feature_model) if each is not None and each.takes_labels and recipe['classifier']['label_conditioning']]
    if told and (unknown := sorted(set(classes) - set(told[0].classes))):
        raise DataError(f'The model {told[0].name!r} knows no class {unknown[0]!r}.', f'{nearest(unknown[0], told[0].classes)}')
    config = _config(recipe, model, feature_model, told[0].classes if told else list(classes))
    config['levels'] = {'count': _level_count(recipe, {name: len(real_images.ids(name)) for name in classes})}
    with torch.device('meta'):
        build_level_classifier(config)
    scorer = build_strict(_inspector(recipe), INSPECTORS)
    scorer.check(classes, None)
    if recipe['scores'] is not None:
        read_scores(recipe['scores'], scorer)
    return MinorityRun(dict(recipe), model, feature_model, real_images, classes, scorer, config, training_options(recipe))


def read_scores(file: str | Path, scorer: MinorityScore, real_images: RealImages | None = None) -> dict[str, float]:
    """Id -> minority score, of a file that `score_folder` wrote.

    Args:
        scorer: what must have made them.
        real_images: the images that they must be of.

    Raises:
        DataError: see `read_folder_scores`.
        RecipeError: something else made them; the options that differ are named.
    """
    table = read_folder_scores(file, real_images)
    made_by = (made_by_of(table) or {})['inspectors']
    ours = (one for one in made_by if isinstance(one, Mapping) and one.get('type') == 'MinorityScore' and _SCORE in table.column_names)
    if differ := scorer.differs_in(next(ours, {})):
        raise RecipeError(f'The scores in {str(file)!r} differ from those that the recipe asks for in {", ".join(differ)}.', 'Correct score or scores.')
    return dict(zip(table['id'].to_pylist(), table[_SCORE].to_pylist(), strict=True))


def _open(name: str, key: str) -> DenoiserModel:
    model = open_model(name)
    if not isinstance(model, DenoiserModel):
        raise ModelError(
            f'{key} = {name!r} works in latents; a classifier of levels sees pixels.', 'Give a denoiser of our own, such as `synthaug learn edm` makes.'
        )
    model.check_weights()
    return model


def _feature_model(recipe: Mapping[str, Any], model: DenoiserModel) -> DenoiserModel | None:
    """Whose features the classifier looks at; refused where the model cannot make them of these images and labels."""
    name, told = recipe['classifier']['features'], recipe['classifier']['label_conditioning']
    if name is None:
        return None
    found = model if name == _OF_THE_MODEL else _open(name, 'classifier.features')
    if found.size != model.size:
        raise ModelError(f'classifier.features = {name!r} is a model of {found.size[1]} pixels, the model makes {model.size[1]}.', 'Use one of that size.')
    if told and found.takes_labels and model.takes_labels and found.classes != model.classes:
        raise ModelError(f'classifier.features = {name!r} is told other classes than {model.name!r}.', 'Set classifier.label_conditioning=False.')
    if not told and not found.runs_without_labels:
        what = f'The features of {found.name!r} need the class, which the classifier is not told.'
        raise RecipeError(what, 'Set classifier.label_conditioning=True, or classifier.features=None.')
    return found


def _config(recipe: Mapping[str, Any], model: DenoiserModel, feature_model: DenoiserModel | None, classes: list[str]) -> dict[str, Any]:
    """Of the classifier, as far as it is known before the images are scored."""
    network = {key: value for key, value in recipe['classifier'].items() if key not in CLASSIFIER_DEFAULTS}
    ranges = [each.sigma_range for each in (model, feature_model) if each is not None]
    low, high = sigma_range(training_options(recipe), (max(r[0] for r in ranges), min(r[1] for r in ranges)))
    sigma_data = recipe['classifier']['sigma_data']
    return {
        'kind': 'levels',
        'resolution': model.size[1],
        'channels': model.size[0],
        'classes': classes,
        'label_conditioning': recipe['classifier']['label_conditioning'],
        'sigma_data': model.config.get('sigma_data', 0.5) if sigma_data is None else sigma_data,
        'sigma_min': low,
        'sigma_max': high,
        'features': None if feature_model is None else {**feature_model.origin(), 'size': list(feature_model.feature_size)},
        'network': network,
    }


def _level_count(recipe: Mapping[str, Any], counts: Mapping[str, int]) -> int:
    """How many levels; refused (DataError) where the images cannot fill them, two images each."""
    rank, count = recipe['levels']['rank'], recipe['levels']['count']
    whose = min(counts, key=lambda name: counts[name])
    total, fewest = sum(counts.values()), counts[whose] if rank == 'class' else sum(counts.values())
    if count is None:
        count = propose_level_count(fewest)
    if count > fewest or 2 * count > total:
        of = f'the class {whose!r} has {fewest} images' if count > fewest and rank == 'class' else f'there are {total} images'
        most = min(fewest, total // 2)
        cure = f'Use levels.count={most} or fewer' if most > 1 else 'Give more images'
        raise DataError(f'{count} levels were asked for, but {of}.', f'{cure}: every level needs an image to train on and one to validate on.')
    return count


def _inspector(recipe: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in recipe['score'].items() if key not in SCORE_DEFAULTS}
    return {'type': 'synthaug_plugins.MinorityScore', 'model': recipe['model'], **own}


def decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a complete recipe that decides the weights, as dotted keys; the data are compared by content."""
    parts = {f'{key}.{name}': value for key in ('score', 'levels', 'classifier') for name, value in recipe[key].items() if name not in SCORE_DEFAULTS}
    training = {f'training.{key}': value for key, value in asdict(training_options(recipe)).items() if key not in FREE | {'seed'}}
    return {**parts, **training, **{key: recipe[key] for key in ('model', 'classes', 'seed')}}
