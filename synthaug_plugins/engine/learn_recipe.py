"""Recipes of `synthaug learn edm`: their keys, and the checked values that they become. No data is read here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from synthaug_plugins.diffusion.augmentation import Augmentation
from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.engine.recipe_checks import check_dict, check_learn_keys, check_names, check_texts, plain_data
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.learning.checks import check_whole
from synthaug_plugins.learning.options import FREE, EDMTraining, check_training

KEYS = {
    'model': "the denoiser, dict(kind='edm', resolution=32, channels=3, label_conditioning=True, label_dropout=0.1, sigma_data=None, "
    "network=dict(type='ddpmpp', ...)): the keys of a model's config.json; classes and augment_labels are filled in, and so is sigma_data where it "
    'is None (root mean square of the training images)',
    'data': 'folder of training images, one folder per class; --data on the command line sets it',
    'classes': 'class names in label order; default: the class folders of data in sorted order',
    'training': 'dict(images_shown=..., batch_size=..., ...): the attributes of EDMTraining except seed',
    'augment': 'dict(p=0.12, ...): the attributes of Augmentation, non-leaking augmentation that the network is told of; or None',
    'samples': 'dict(every=None, per_class=8, max_classes=16, num_steps=18): sheets of samples and the loss per noise level, every so many images '
    'shown (None: a tenth of images_shown) and at the end',
    'seed': 'a whole number; the same seed, recipe and data give the same weights (to the bit on a CPU)',
    'name': 'name of the model, for its card',
    'licence': 'licence of the weights, for the card and for every store made with them',
}
DEFAULTS: dict[str, Any] = {'data': None, 'classes': None, 'augment': None, 'samples': {}, 'seed': 0, 'name': None, 'licence': None}
SAMPLES_DEFAULTS = {'every': None, 'per_class': 8, 'max_classes': 16, 'num_steps': 18}
_TRAINING = {f.name for f in fields(EDMTraining)} - {'seed'}
_AUGMENT = {f.name for f in fields(Augmentation)}
_MODEL_FILLED = ('classes', 'augment_labels')


def load_learn_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`read_recipe` and `complete_learn_recipe`.

    Raises:
        RecipeError, ModelError: see there.
    """
    return complete_learn_recipe(read_recipe(path, options))


def complete_learn_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every key set and checked as far as that needs no data: the network is built without memory for its weights.

    Raises:
        RecipeError: unknown or missing key, a value of the wrong kind or out of range; the key is named.
        ModelError: the model cannot be built.
    """
    check_learn_keys(recipe, KEYS, 'learn a model')
    for key in ('model', 'training'):
        if key not in recipe:
            raise RecipeError(f'The recipe has no {key}.', 'Start from a shipped one: synthaug init edm_digits')
    done = {**DEFAULTS, **recipe}
    for key, known in (('model', None), ('training', _TRAINING), ('augment', _AUGMENT), ('samples', SAMPLES_DEFAULTS)):
        if done[key] is not None or key != 'augment':
            check_dict(key, done[key], known)
    for key in _MODEL_FILLED:
        if key in done['model']:
            raise RecipeError(f'model has the key {key!r}, which follows from data and augment.', f'Remove model.{key}.')
    if 'images_shown' not in done['training']:
        raise RecipeError('training has no images_shown.', 'Say for how long to train, such as images_shown=200_000_000 for CIFAR-10.')
    for key in ('P_mean', 'P_std'):
        if key in done['training'] and done['model'].get('kind') != 'edm':
            raise RecipeError(f'training.{key} has no effect on a model of kind {done["model"].get("kind")!r}.', 'Remove it.')
    done['samples'] = {**SAMPLES_DEFAULTS, **done['samples']}
    for name, value in done['samples'].items():
        if value is not None or name != 'every':
            check_whole(f'samples.{name}', value)
    if done['classes'] is not None:
        check_names('classes', done['classes'])
    check_texts(done, 'data', 'name', 'licence')
    done = plain_data(done)
    training, augment = training_options(done), augmentation(done)
    check_training(model_config(done, done['classes'] or ['?'], 0.5), training, augment)
    return done


def training_options(recipe: Mapping[str, Any]) -> EDMTraining:
    """The training options of a complete recipe."""
    options = dict(recipe['training'])
    stds = options.get('power_ema_stds', ())
    if not isinstance(stds, list | tuple):
        raise RecipeError(f'training.power_ema_stds = {stds!r} is not a list.', 'Write power_ema_stds=(0.05, 0.10).')
    return EDMTraining(**{**options, 'power_ema_stds': tuple(stds)}, seed=recipe['seed'])


def augmentation(recipe: Mapping[str, Any]) -> Augmentation | None:
    """The augmentation of a complete recipe."""
    if recipe['augment'] is None:
        return None
    for name, value in recipe['augment'].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RecipeError(f'augment.{name} = {value!r} is no number.', 'Use 0 for off, 1 for probability p.')
    return Augmentation(**recipe['augment'])


def model_config(recipe: Mapping[str, Any], classes: list[str], sigma_data: float) -> dict[str, Any]:
    """The model's config: that of the recipe with classes, sigma_data (where it is None) and the number of augmentation labels filled in."""
    augment = augmentation(recipe)
    given = recipe['model'].get('sigma_data')
    filled = {'classes': list(classes), 'sigma_data': sigma_data if given is None else given}
    return {**recipe['model'], **filled, **({'augment_labels': augment.label_dim} if augment else {})}


def decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a complete recipe that decides the weights, as dotted keys; the data are compared by content.

    An option of training or augment that is left out equals its default.
    """
    augment = augmentation(recipe)
    parts = {
        **{f'model.{k}': v for k, v in recipe['model'].items() if k != 'network'},
        **{f'model.network.{k}': v for k, v in recipe['model']['network'].items()},
        **{f'training.{k}': v for k, v in asdict(training_options(recipe)).items() if k not in FREE | {'seed'}},
    }
    return {**parts, 'augment': augment and asdict(augment), 'seed': recipe['seed'], 'classes': recipe['classes']}
