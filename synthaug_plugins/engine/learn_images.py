"""What recipes have in common that learn something of the user's images for a model: their keys, and which images they are about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from synthaug_plugins.engine.recipe_checks import check_dict, check_learn_keys, check_model, check_names, check_texts, named_data, plain_data
from synthaug_plugins.errors import DataError, nearest
from synthaug_plugins.few_shot import draw_shots
from synthaug_plugins.learning.checks import check_whole
from synthaug_plugins.prompts.templates import resolve_templates
from synthaug_plugins.real_images import RealImages

KEYS = {
    'data': 'folder of images, one folder per class; --data on the command line sets it',
    'classes': 'names of the class folders to learn from; default: all',
    'shots': 'images per class to learn from, drawn by shots_seed as `synthaug shots` draws them; None: all',
    'shots_seed': 'another draw for another seed; only with shots',
    'dataset': 'one of the data sets whose class names are known: what the classes are called',
    'names': 'a file of class names, in place of dataset; without both, folder names are read as words',
}
DEFAULTS: dict[str, Any] = {
    **{'data': None, 'classes': None, 'shots': None, 'shots_seed': 0, 'dataset': None, 'names': None},
    **{'training': {}, 'samples': {}, 'seed': 0, 'name': None, 'licence': None},
}


def complete_of_images(
    recipe: Mapping[str, Any],
    keys: Mapping[str, str],
    defaults: Mapping[str, Any],
    dicts: Mapping[str, Collection[str]],
    samples: Mapping[str, Any],
    what: str,
    shipped: str,
) -> dict[str, Any]:
    """A recipe with every key set and checked, as far as that is the same for all kinds: training options are not looked at.

    Args:
        keys: its keys.
        defaults: of those that may be left out.
        dicts: 'model' and 'training' -> the keys that they may have.
        samples: the defaults of `samples`; those that are whole numbers stay above 0.
        what: what such a recipe does: 'learn words'.
        shipped: a recipe of this kind.

    Raises:
        RecipeError: unknown or missing key, a value of the wrong kind or out of range; the key is named.
    """
    check_learn_keys(recipe, keys, what)
    check_model(recipe, dicts['model'], shipped)
    done = {**defaults, **recipe}
    for key, known in (('training', dicts['training']), ('samples', samples)):
        check_dict(key, done[key], known)
    done['samples'] = {**samples, **done['samples']}
    for key in (key for key, value in samples.items() if isinstance(value, int)):
        check_whole(f'samples.{key}', done['samples'][key])
    resolve_templates([done['samples']['prompt']])
    if done['classes'] is not None:
        check_names('classes', done['classes'])
    if done['shots'] is not None:
        draw_shots({}, done['shots'], done['shots_seed'])  # refuses numbers out of range
    check_texts(done, 'data', 'dataset', 'names', 'name', 'licence')
    return plain_data(done)


def choose_images(recipe: Mapping[str, Any]) -> tuple[RealImages, dict[str, tuple[str, ...]]]:
    """The data folder of a complete recipe, and class -> ids of the images to learn from.

    Raises:
        RecipeError: no data.
        DataError: a class that is no folder of the data, or too few images for shots.
    """
    real_images = RealImages(named_data(recipe))
    classes = tuple(recipe['classes'] or real_images.classes)
    for name in classes:
        if name not in real_images.classes:
            raise DataError(f'The class {name!r} has no folder in {str(real_images.root)!r}.', nearest(name, real_images.classes))
    images = {name: real_images.ids(name) for name in classes}
    if recipe['shots'] is not None:
        images = dict(draw_shots(images, recipe['shots'], recipe['shots_seed'], val_shots=0).train)
    return real_images, images
