"""Recipes of `synthaug learn words`: their keys, and the checked run that they become. No weights load here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from synthaug_plugins.engine.recipe import check_learn_keys, read_recipe
from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.few_shot import draw_shots
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
    'data': 'folder of images, one folder per class; --data on the command line sets it',
    'classes': 'names of the class folders to learn words for; default: all',
    'shots': 'images per class to learn from, drawn by shots_seed as `synthaug shots` draws them; None: all',
    'shots_seed': 'another draw for another seed; only with shots',
    'dataset': 'one of the data sets whose class names are known: what the classes are called, for the vectors to start from',
    'names': 'a file of class names, in place of dataset; without both, folder names are read as words',
    'preset': f'published setting that training starts from: {" or ".join(repr(name) for name in PRESETS)}',
    'training': 'dict(steps=..., ...): attributes of WordTraining except seed, in place of those of the preset',
    'samples': "dict(per_class=4, max_classes=16, num_steps=None, guidance_scale=None, prompt='a photo of a {}'): what the sheet shows of each word, "
    "beside as many real images; None: the pipeline's own",
    'seed': 'a whole number; the same seed, recipe and data give the same words (to the bit on a CPU)',
    'name': 'name of the words, for their card',
    'licence': 'licence of the words, for their card',
}
DEFAULTS: dict[str, Any] = {
    **{'data': None, 'classes': None, 'shots': None, 'shots_seed': 0, 'dataset': None, 'names': None, 'preset': 'iclr2024', 'training': {}},
    **{'samples': {}, 'seed': 0, 'name': None, 'licence': None},
}
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
    check_learn_keys(recipe, KEYS, 'learn words')
    if 'model' not in recipe:
        raise RecipeError('The recipe has no model.', 'Start from a shipped one: synthaug init dafusion_words')
    done = {**DEFAULTS, **recipe}
    for key, known in (('model', _MODEL), ('training', _TRAINING), ('samples', {*SAMPLES_DEFAULTS})):
        if not isinstance(done[key], Mapping):
            raise RecipeError(f'{key} = {done[key]!r} is not a dict.', f'Write {key} = dict(...).')
        for name in done[key]:
            if name not in known:
                raise RecipeError(f'{key} has an unknown key {name!r}.', 'It stands beside training.' if name == 'seed' else nearest(name, known))
    if not isinstance(done['model'].get('name'), str):
        raise RecipeError(f'model.name = {done["model"].get("name")!r} is no text.', "Write model = dict(name='embedded:digits_sd').")
    if done['preset'] not in PRESETS:
        raise RecipeError(f'preset = {done["preset"]!r} is unknown.', nearest(str(done['preset']), PRESETS))
    done['samples'] = {**SAMPLES_DEFAULTS, **done['samples']}
    for key in ('per_class', 'max_classes'):
        value = done['samples'][key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RecipeError(f'samples.{key} = {value!r} is no whole number above 0.', 'Correct it.')
    resolve_templates([done['samples']['prompt']])
    classes = done['classes']
    if classes is not None and (not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes) or not classes):
        raise RecipeError(f'classes = {classes!r} is not a list of names.', "Write classes=['cat', 'dog'].")
    if classes is not None and len(set(classes)) < len(classes):
        raise RecipeError(f'classes = {classes!r} names a class twice.', 'Name each once.')
    if done['shots'] is not None:
        draw_shots({}, done['shots'], done['shots_seed'])  # refuses numbers out of range
    for key in ('data', 'dataset', 'names', 'name', 'licence'):
        if done[key] is not None and not isinstance(done[key], str):
            raise RecipeError(f'{key} = {done[key]!r} is not a text.', 'Correct it.')
    try:
        done = json.loads(json.dumps(done, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecipeError(f'The recipe holds a value that is no plain data: {error}.', 'Use finite numbers, texts, lists and dicts only.') from error
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
    if recipe['data'] is None:
        raise RecipeError('The recipe names no images.', 'Add --data FOLDER with one folder per class.')
    real_images = RealImages(recipe['data'])
    classes = tuple(recipe['classes'] or real_images.classes)
    for name in classes:
        if name not in real_images.classes:
            raise DataError(f'The class {name!r} has no folder in {str(real_images.root)!r}.', nearest(name, real_images.classes))
    images = {name: real_images.ids(name) for name in classes}
    if recipe['shots'] is not None:
        images = dict(draw_shots(images, recipe['shots'], recipe['shots_seed'], val_shots=0).train)
    words, names = words_of(classes), _names(recipe, classes, options)
    model = TextModel(recipe['model']['name'], **{key: value for key, value in recipe['model'].items() if key != 'name'})
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
