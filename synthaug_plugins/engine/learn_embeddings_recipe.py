"""Recipes of `synthaug learn embeddings`: their keys, and the checked run that they become. No weights load here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain, zip_longest
from typing import Any

from synthaug_plugins.engine import learn_images
from synthaug_plugins.engine.learn_images import choose_images, complete_of_images
from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.learning.embeddings_options import EmbeddingTraining, check_embedding_training, decisive_options
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel, open_model
from synthaug_plugins.prompts.sources import Basic
from synthaug_plugins.prompts.templates import fill
from synthaug_plugins.real_images import RealImages

KEYS = {
    'model': "the model, dict(name='CompVis/stable-diffusion-v1-4', revision=..., variant=..., image_size=...): options of `TextModel`; or the name of a "
    'folder of our own alone. Embeddings are of use for this model and image size only',
    **learn_images.KEYS,
    'training': 'dict(steps=..., ...): attributes of EmbeddingTraining except seed, in place of its defaults',
    'samples': "dict(images=20, num_steps=None, prompt='a photo of a {}'): how many images the sheet and the figures are of, and what the class is called "
    "beside them; num_steps=None: the model's own",
    'seed': 'a whole number; the same seed, recipe and image give the same embedding (to the bit on a CPU, for the same images in the batch)',
    'name': 'name of the embeddings, for their card',
    'licence': 'licence of the embeddings, for their card: they show their images again',
}
DEFAULTS: dict[str, Any] = dict(learn_images.DEFAULTS)
SAMPLES_DEFAULTS = {'images': 20, 'num_steps': None, 'prompt': 'a photo of a {}'}
_MODEL = {'name', 'revision', 'variant', 'image_size', 'tiny_vae', 'few_step', 'compile', 'channels_last'}
_TRAINING = {f.name for f in fields(EmbeddingTraining)} - {'seed'}


@dataclass(frozen=True)
class EmbeddingsRun:
    """A checked recipe, ready to learn.

    Attributes:
        recipe: complete; plain JSON.
        model: without its weights.
        real_images: the data folder.
        names: class -> what it is called, where prompts say it.
        ids: of the images to learn from, in turn one of each class: what a run that is stopped has learned is spread over the classes.
        options: see `EmbeddingTraining`.
    """

    recipe: dict[str, Any]
    model: DenoiserModel | TextModel
    real_images: RealImages
    names: Mapping[str, str]
    ids: list[str]
    options: EmbeddingTraining


def load_embeddings_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`read_recipe` and `complete_embeddings_recipe`.

    Raises:
        RecipeError: see there.
    """
    return complete_embeddings_recipe(read_recipe(path, options))


def complete_embeddings_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every key set and checked, as far as that needs neither model nor data.

    Raises:
        RecipeError: unknown or missing key, a value of the wrong kind or out of range; the key is named.
    """
    dicts = {'model': _MODEL, 'training': _TRAINING}
    done = complete_of_images(recipe, KEYS, DEFAULTS, dicts, SAMPLES_DEFAULTS, 'learn embeddings', 'learn/inversion_digits')
    check_embedding_training(training_options(done))
    return done


def training_options(recipe: Mapping[str, Any]) -> EmbeddingTraining:
    """The training options of a complete recipe."""
    return EmbeddingTraining(**recipe['training'], seed=recipe['seed'])


def prepare_embeddings(recipe: Mapping[str, Any]) -> EmbeddingsRun:
    """Check a complete recipe against its model and its images: everything that can be refused before weights load.

    Raises:
        RecipeError: no data; a number of tokens that the model does not take; a class that it cannot be told, where learning is to start from it;
            samples that it cannot make.
        DataError: a class that is no folder of the data, or too few images for shots.
        ModelError: the model paints into masked images, cannot be had or is incomplete.
    """
    options, samples = training_options(recipe), recipe['samples']
    real_images, images = choose_images(recipe)
    model = open_model(**recipe['model'])
    model.embedding_shape(options.tokens)
    names = _names(recipe, tuple(images), model)
    told = [text for text in (options.initialise_from, samples['prompt']) if text is not None]
    if isinstance(model, TextModel):
        model.refuse_inpainting('embeddings to learn')
        for prompt in (fill(text, name) for text in told for name in names.values()):
            model.check_placeholders(prompt)
    elif options.initialise_from is not None:
        _check_told(model, options.initialise_from, names)
    model.check_weights()
    model.sampler_options({'num_steps': samples['num_steps']} if samples['num_steps'] is not None else {})
    ids = [i for i in chain.from_iterable(zip_longest(*images.values())) if i is not None]
    return EmbeddingsRun(dict(recipe), model, real_images, names, ids, options)


def _names(recipe: Mapping[str, Any], classes: tuple[str, ...], model: DenoiserModel | TextModel) -> dict[str, str]:
    """What the classes are called: in prompts, or by the labels of a model of our own."""
    if isinstance(model, DenoiserModel):
        for key in ('dataset', 'names'):
            if recipe[key] is not None:
                raise RecipeError(f'{key} = {recipe[key]!r} has no effect: {model.name!r} is told no text.', f'Leave {key} out.')
        return {name: name for name in classes}
    source = Basic('{}', recipe['dataset'], recipe['names'])
    source.prepare(classes)
    return {name: source.class_name(name).text for name in classes}


def _check_told(model: DenoiserModel, text: str, names: Mapping[str, str]) -> None:
    """Refuse (RecipeError) a text to start from that is no class of a model which is told nothing else."""
    for name in names:
        said = fill(text, name)
        if not model.takes_labels or said not in model.classes:
            what = f'initialise_from = {text!r}: {model.name!r} is told classes, and {said!r} is none of its own.'
            raise RecipeError(what, f"{nearest(said, model.classes)} Or set initialise_from='{{}}' or None.")


def decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a complete recipe that decides an image's embedding, as dotted keys. Which images are learned does not: they may become more."""
    model = {f'model.{key}': recipe['model'].get(key) for key in sorted(_MODEL - {'compile', 'channels_last'})}
    options = training_options(recipe)
    training = {f'training.{key}': value for key, value in decisive_options(options).items() if key != 'seed'}
    named = {key: recipe[key] for key in ('dataset', 'names')} if '{}' in (options.initialise_from or '') else {}
    return {**model, **training, **named, 'seed': recipe['seed']}
