"""Generation recipes: their keys, and the plan that a recipe becomes. No weights load here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthaug_plugins.curation.base import Inspector
from synthaug_plugins.engine.recipe_checks import check_dict, check_names, check_texts, plain_data
from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.generators.base import Generator
from synthaug_plugins.real_images import RealImages, in_threads
from synthaug_plugins.registry import GENERATORS, INSPECTORS, build_strict
from synthaug_plugins.store.encode import check_format
from synthaug_plugins.store.plan import Plan, make_blocks

KEYS = {
    'generator': "the registry entry that makes the images, dict(type='synthaug_plugins.RealGuidance', ...)",
    'data': 'folder of real images, one folder per class; --data on the command line sets it',
    'classes': "class names in label order; default: the class folders of data, else the model's own classes",
    'per_class': 'accepted images wanted per class: a number, or a dict from class name to number',
    'per_source': 'accepted images wanted per real image, so a class of n real images gets n times as many; in place of per_class',
    'fill_to': "a number, or 'largest' for the images of the largest class: every class gets what its real images in data lack of it, a full class none; "
    'in place of per_class',
    'block_size': 'images per block: the unit that is redone after a kill, and one shard of the store; small classes share one',
    'batch_size': 'images per network call; halved by itself when memory runs out',
    'tries_per_image': 'requests allowed per wanted image before a class is left short of its quota',
    'seed': 'a whole number; the same seed and recipe make the same images',
    'inspectors': "registry entries that judge every image, [dict(type='synthaug_plugins.ImageSanity')]",
    'image': "dict(format='png' | 'jpg' | 'webp', quality=1..100, keep_rejected=False, size=None), size: as the model makes them (None), "
    "as their real image ('source'; of a cropped one, its shorter side), or the shorter side in pixels",
}
DEFAULTS: dict[str, Any] = {
    'data': None,
    'classes': None,
    'per_class': 100,
    'per_source': None,
    'fill_to': None,
    'block_size': 256,
    'batch_size': 32,
    'tries_per_image': 4.0,
    'seed': 0,
    'inspectors': [{'type': 'synthaug_plugins.ImageSanity'}],
    'image': {},
}
IMAGE_DEFAULTS = {'format': 'png', 'quality': 95, 'keep_rejected': False, 'size': None}


@dataclass(frozen=True)
class Run:
    """A checked recipe, ready to generate: the plan and what was built from the recipe for it."""

    recipe: dict[str, Any]
    plan: Plan
    generator: Generator
    inspectors: tuple[Inspector, ...]
    real_images: RealImages | None


def read_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a recipe file (an MMEngine config, so it is Python code that runs) and lay `options`, with dotted keys, over it.

    Raises:
        RecipeError: the file cannot be read or run, or the options do not fit it.
    """
    from mmengine.config import Config

    try:
        config = Config.fromfile(path)
        config.merge_from_dict({key: _replacing(config.to_dict(), key, value) for key, value in (options or {}).items()})
    except Exception as error:  # a recipe is Python: it may raise anything
        raise RecipeError(f'The recipe {path!r} cannot be read: {type(error).__name__}: {error}.', 'Correct the file or the options.') from error
    return config.to_dict()


def _replacing(config: Mapping[str, Any], key: str, value: Any) -> Any:
    """An option's value as MMEngine merges it: a dict in the place of something else (per_class=dict(three=50)) must say that it replaces it."""
    if not isinstance(value, Mapping):
        return value
    found: Any = config
    for part in key.split('.'):
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            return value  # nothing there to replace
    return value if isinstance(found, Mapping | list) else {**value, '_delete_': True}


def load_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`read_recipe` and `complete`.

    Raises:
        RecipeError: see there.
    """
    return complete(read_recipe(path, options))


def complete(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every key set and checked as far as that needs no other file.

    Raises:
        RecipeError: unknown key, missing generator, a value of the wrong kind or out of range.
    """
    for key in recipe:
        if key in ('train_dataloader', 'arms'):
            command = 'train' if key == 'train_dataloader' else 'compare'
            raise RecipeError(f'This is no generation recipe: it has {key}.', f'Use `synthaug {command}`.')
        if key not in KEYS:
            raise RecipeError(f'The recipe has an unknown key {key!r}.', nearest(key, KEYS))
    if 'generator' not in recipe:
        raise RecipeError('The recipe has no generator.', "Add generator = dict(type='synthaug_plugins.RealGuidance', ...).")
    done = {**DEFAULTS, **recipe}
    for key, kind, low in (('block_size', int, 1), ('batch_size', int, 1), ('tries_per_image', (int, float), 1), ('seed', int, 0)):
        value = done[key]
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value < math.inf:
            raise RecipeError(f'{key} = {value!r} is out of range.', f'Use a {"whole number" if kind is int else "number"} of at least {low}.')
    _settle_quota(done, recipe)
    check_dict('image', done['image'], IMAGE_DEFAULTS)
    done['image'] = {**IMAGE_DEFAULTS, **done['image']}
    check_format(done['image']['format'], done['image']['quality'])
    size = done['image']['size']
    if size is not None and size != 'source' and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise RecipeError(f'image.size = {size!r} is no size.', "Use None, 'source' or a number of pixels.")
    if not isinstance(done['inspectors'], list | tuple):
        raise RecipeError(f'inspectors = {done["inspectors"]!r} is not a list.', 'Write inspectors = [dict(type=...), ...].')
    if done['classes'] is not None:
        check_names('classes', done['classes'])
    check_texts(done, 'data')
    return plain_data(done, finite=False)


def _settle_quota(done: dict[str, Any], recipe: Mapping[str, Any]) -> None:
    """Refuse (RecipeError) all but one way to say how many images; the default of per_class gives way to another."""
    per_source, fill_to = done['per_source'], done['fill_to']
    if per_source is not None and (isinstance(per_source, bool) or not isinstance(per_source, int) or per_source < 1):
        raise RecipeError(f'per_source = {per_source!r} is no number of images.', 'Use a whole number of at least 1; DA-Fusion makes 10.')
    if fill_to is not None and fill_to != 'largest' and (isinstance(fill_to, bool) or not isinstance(fill_to, int) or fill_to < 1):
        raise RecipeError(f'fill_to = {fill_to!r} is no number of images.', "Use a whole number of at least 1, or 'largest'.")
    given = {key: recipe[key] for key in ('per_class', 'per_source', 'fill_to') if recipe.get(key) is not None}
    if len(given) > 1:
        raise RecipeError(f'The recipe has {" and ".join(f"{k} = {v!r}" for k, v in given.items())}.', 'Set all but one of them to None.')
    if given and 'per_class' not in given:
        done['per_class'] = None
    elif done['per_class'] is None:
        raise RecipeError('The recipe has neither per_class nor per_source nor fill_to.', 'Set one of them.')


def _quota(recipe: Mapping[str, Any], classes: Sequence[str], real_images: RealImages | None) -> int | dict[str, int]:
    """Accepted images wanted per class, as `make_blocks` takes them.

    Raises:
        RecipeError: fill_to without real images.
        DataError: no class lacks an image.
    """
    if recipe['per_class'] is not None:
        return recipe['per_class']
    if real_images is None:
        raise RecipeError(f'fill_to = {recipe["fill_to"]!r} counts real images, but the recipe names none.', 'Add --data FOLDER with one folder per class.')
    counts = {name: len(real_images.ids(name)) for name in classes}
    if recipe['per_source'] is not None:
        return {name: recipe['per_source'] * n for name, n in counts.items()}
    full = max(counts.values()) if recipe['fill_to'] == 'largest' else recipe['fill_to']
    if min(counts.values()) >= full:
        what = f'fill_to = {recipe["fill_to"]!r}: no class of {str(real_images.root)!r} lacks images, the smallest has {min(counts.values())}.'
        raise DataError(what, 'Use per_class, or a larger number.')
    return {name: max(0, full - n) for name, n in counts.items()}


def prepare(recipe: Mapping[str, Any], say: Callable[[str], None] = lambda sentence: None, plan: Plan | None = None) -> Run:
    """Check a complete recipe against its data and model, and compute its plan.

    Args:
        recipe: as `complete` returns it.
        say: called with one sentence when a user should know something.
        plan: of the same recipe, images and model, which is not computed again: that reads them all.

    Raises:
        RecipeError, DataError, ModelError: what cannot work, before any weights load.
    """
    generator: Generator = build_strict(recipe['generator'], GENERATORS)
    inspectors = tuple(build_strict(i, INSPECTORS) for i in recipe['inspectors'])
    real_images = RealImages(recipe['data']) if recipe['data'] else None
    if generator.needs_sources and real_images is None:
        raise RecipeError(f'{type(generator).__name__} starts from real images, but the recipe names none.', 'Add --data FOLDER with one folder per class.')
    for inspector in inspectors:
        if inspector.needs_real_images and real_images is None:
            raise RecipeError(
                f'{type(inspector).__name__} compares with real images, but the recipe names none.', 'Add --data FOLDER with one folder per class.'
            )
    if recipe['per_source'] is not None and not generator.needs_sources:
        what = f'per_source = {recipe["per_source"]}, but {type(generator).__name__} starts from no real image.'
        raise RecipeError(what, 'Set per_class in its place.')
    if recipe['image']['size'] == 'source' and not generator.needs_sources:
        raise RecipeError(f"image.size = 'source', but {type(generator).__name__} starts from no real image.", 'Give a number of pixels.')
    classes = _classes(recipe, generator, real_images)
    generator.real_images = real_images
    generator.check(classes)
    for inspector in inspectors:
        inspector.check(classes, real_images)
    generator.prepare(classes, say)
    if generator.keeps_pixels and recipe['image']['format'] != 'png':
        say(f"image.format = {recipe['image']['format']!r} loses detail everywhere: only 'png' keeps pixels outside of the masks as they are.")
    if generator.keeps_pixels and isinstance(recipe['image']['size'], int):
        say(f"image.size = {recipe['image']['size']} resamples every image: only None and 'source' keep pixels outside of the masks as they are.")
    if plan is not None:
        return Run(dict(recipe), plan, generator, inspectors, real_images)
    sources = {name: real_images.ids(name) for name in classes} if generator.needs_sources and real_images else None
    blocks = make_blocks(classes, _quota(recipe, classes, real_images), sources, recipe['block_size'], recipe['tries_per_image'])
    decides = {
        'generator': dict(generator.identity()),
        'inspectors': [dict(i.identity()) for i in inspectors],
        'image': recipe['image'],
        'batch_size': recipe['batch_size'],
        'seed': recipe['seed'],
        'sources_sha256': real_images.content_hash() if real_images and (sources or any(i.needs_real_images for i in inspectors)) else None,
    }
    return Run(dict(recipe), Plan(classes, blocks, json.loads(json.dumps(decides))), generator, inspectors, real_images)


def _classes(recipe: Mapping[str, Any], generator: Generator, real_images: RealImages | None) -> tuple[str, ...]:
    named, found, known = recipe['classes'], real_images.classes if real_images else None, generator.model_classes()
    if named is None:
        classes = found or known
        if not classes:
            raise RecipeError('The recipe names no classes and neither data nor the model has any.', "Add classes = ['...', ...].")
        return tuple(classes)
    if found and set(found) != set(named):
        only_recipe, only_data = sorted(set(named) - set(found)), sorted(set(found) - set(named))
        raise DataError(
            f'The classes of the recipe and of {recipe["data"]!r} differ: only in the recipe {only_recipe}, only in the folder {only_data}.',
            'Make the names equal.',
        )
    return tuple(named)


def check_sources(run: Run) -> None:
    """Decode every source image once, so that a broken one is named before hours of work, not in the middle.

    Raises:
        DataError: an image cannot be read.
    """
    images = run.real_images
    if images is None:
        return
    ids = sorted({source for part in run.plan.parts for source in part.sources})
    for _ in in_threads(lambda i: images.load(i).shape, ids):
        pass
