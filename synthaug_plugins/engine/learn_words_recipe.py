"""Recipes of `synthaug learn words`: their keys, and the checked run that they become. No weights load here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from synthaug_plugins.engine import learn_images
from synthaug_plugins.engine.learn_images import choose_images, complete_of_images
from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.generators.guidance_scale import GuidanceScale
from synthaug_plugins.learning.words_options import PRESETS, WordTraining, check_word_training, decisive_options
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.prompts.placeholders import words_of
from synthaug_plugins.prompts.sentences import Vocabulary
from synthaug_plugins.prompts.sources import Basic
from synthaug_plugins.prompts.templates import fill, resolve_templates
from synthaug_plugins.real_images import RealImages

KEYS = {
    'model': "the pipeline, dict(name='stable-diffusion-v1-5/stable-diffusion-v1-5', revision=..., variant=..., image_size=...): options of `TextModel`; "
    'with erasures=FOLDER each word is learned on the model that has its class erased',
    **learn_images.KEYS,
    'preset': f'published setting that training starts from: {" or ".join(repr(name) for name in PRESETS)}',
    'training': 'dict(steps=..., ...): attributes of WordTraining except seed, in place of those of the preset',
    'samples': "dict(per_class=4, max_classes=16, num_steps=None, guidance_scale=None, prompt='a photo of a {}'): what the sheet shows of each word, "
    "beside as many real images; None: the pipeline's own",
    'seed': 'a whole number; the same seed, recipe and data give the same words (to the bit on a CPU)',
    'name': 'name of the words, for their card',
    'licence': 'licence of the words, for their card',
}
DEFAULTS: dict[str, Any] = {**learn_images.DEFAULTS, 'preset': 'iclr2024'}
SAMPLES_DEFAULTS = {'per_class': 4, 'max_classes': 16, 'num_steps': None, 'guidance_scale': None, 'prompt': 'a photo of a {}'}
_MODEL = {'name', 'revision', 'variant', 'image_size', 'tiny_vae', 'few_step', 'compile', 'channels_last', 'erasures'}
_TRAINING = {f.name for f in fields(WordTraining)} - {'seed'}


@dataclass(frozen=True)
class WordsRun:
    """A checked recipe, ready to learn.

    Attributes:
        recipe: complete; plain JSON.
        model: the pipeline, without its weights, with the words among its tokens.
        real_images: the data folder.
        classes: whose words are learned.
        names: class -> what it is called.
        images: class -> ids of the images to learn from.
        options: see `WordTraining`.
    """

    recipe: dict[str, Any]
    model: TextModel
    real_images: RealImages
    classes: tuple[str, ...]
    names: Mapping[str, str]
    images: Mapping[str, tuple[str, ...]]
    options: WordTraining


def load_words_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`read_recipe` and `complete_words_recipe`.

    Raises:
        RecipeError: see there.
    """
    return complete_words_recipe(read_recipe(path, options))


def complete_words_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every key set and checked, as far as that needs neither model nor data.

    Raises:
        RecipeError: unknown or missing key, a value of the wrong kind or out of range; the key is named.
    """
    dicts = {'model': _MODEL, 'training': _TRAINING}
    done = complete_of_images(recipe, KEYS, DEFAULTS, dicts, SAMPLES_DEFAULTS, 'learn words', 'dafusion_words')
    if done['preset'] not in PRESETS:
        raise RecipeError(f'preset = {done["preset"]!r} is unknown.', nearest(str(done['preset']), PRESETS))
    check_word_training(training_options(done))
    return done


def training_options(recipe: Mapping[str, Any]) -> WordTraining:
    """The training options of a complete recipe: those of its preset, and over them its own."""
    options = {**PRESETS[recipe['preset']], **recipe['training'], 'seed': recipe['seed']}
    if 'templates' in options:
        options['templates'] = resolve_templates(options['templates'])
    return WordTraining(**options)


def prepare_words(recipe: Mapping[str, Any]) -> WordsRun:
    """Check a complete recipe against its model and its images: everything that can be refused before weights load.

    Raises:
        RecipeError: no data; a template over the token limit, or one (or the text to start from) that names a class although words are to start
            without names; samples that the model cannot make.
        DataError: a class that is no folder of the data, too few images for shots, two classes with the same word, or a word that is a token already.
        ModelError: the model takes no words, cannot be had or is incomplete.
    """
    options, samples = training_options(recipe), recipe['samples']
    real_images, images = choose_images(recipe)
    classes = tuple(images)
    words, names = words_of(classes), _names(recipe, classes, options)
    model = TextModel(**recipe['model'])
    model.refuse_words('words to learn')
    model.refuse_inpainting('words to learn')
    model.tokens.add(dict.fromkeys(words.values(), options.vectors))
    for template in (*options.templates, samples['prompt']):
        prompt = fill(template, next(iter(words.values())))
        if cut := model.fit_prompt(prompt)[1]:
            what = f'{prompt!r} with {options.vectors} tokens for its word is over the token limit of {model.name!r} by the words {" ".join(cut)!r}.'
            raise RecipeError(what, 'Lower vectors, or use shorter templates.')
    model.check_weights()
    model.check_learned(classes)
    GuidanceScale(samples['guidance_scale'], model)
    model.visited_sigmas(samples['num_steps'] or model.default_steps)
    return WordsRun(dict(recipe), model, real_images, classes, names, images, options)


def _names(recipe: Mapping[str, Any], classes: Sequence[str], options: WordTraining) -> dict[str, str]:
    """What the classes are called. Where words start without names, only to make sure that no prompt says one."""
    told = recipe['dataset'] is not None or recipe['names'] is not None
    if options.initialise_from is not None and not told:
        found = {name: name.replace('_', ' ') for name in classes}
    else:
        source = Basic('{}', recipe['dataset'], recipe['names'])
        source.prepare(classes)
        found = {name: source.class_name(name).text for name in classes}
    if options.initialise_from is not None:
        vocabulary = Vocabulary(found)
        for key, text in (('initialise_from', options.initialise_from), *(('templates', template) for template in options.templates)):
            if named := vocabulary.named(text):
                what = f'{key}: {text!r} names the class {min(named[0])!r}, and words that start from {options.initialise_from!r} are to hold no name.'
                raise RecipeError(what, 'Write it without class names, or set initialise_from=None.')
    return found


def decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a complete recipe that decides the words, as dotted keys; the images are compared by content.

    An option of training that is left out equals that of the preset.
    """
    model = {f'model.{key}': recipe['model'].get(key) for key in sorted(_MODEL - {'compile', 'channels_last'})}
    training = {f'training.{key}': value for key, value in decisive_options(training_options(recipe)).items() if key != 'seed'}
    rest = {key: recipe[key] for key in ('classes', 'shots', 'shots_seed', 'dataset', 'names', 'seed')}
    return {**model, **training, **rest}
