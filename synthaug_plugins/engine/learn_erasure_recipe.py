"""Recipes of `synthaug learn erasure`: their keys, the checked values that they become, and what says each concept. No weights load here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from synthaug_plugins.engine.recipe import read_recipe
from synthaug_plugins.engine.recipe_checks import check_dict, check_learn_keys, check_model, check_names, check_texts, plain_data
from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.learning.erasure import FREE, ErasureTraining, training_options
from synthaug_plugins.models.pipeline import TextPipeline
from synthaug_plugins.prompts.base import PromptSource
from synthaug_plugins.registry import PROMPTS, build_strict

KEYS = {
    'model': "the pipeline, dict(name='stable-diffusion-v1-5/stable-diffusion-v1-5', revision=..., variant=..., image_size=...): options of `TextModel`; "
    'Stable Diffusion 1, 2 or XL',
    'classes': 'names of the classes to erase, each by itself; --classes on the command line sets it. Default: the class folders of data',
    'data': 'folder of images, one folder per class; only the names of the folders are read. --data on the command line sets it',
    'prompts': "what says a class, an entry of PROMPTS, such as dict(type='synthaug_plugins.Basic', templates=['a photo of a {}', '{}'], dataset='pets')",
    'synonyms': "dict from class name to further words for it, each said in place of its name in every prompt: dict(car=['automobile'])",
    'erase_from': 'prompt of a wider concept that is kept without the class, for all classes, such as "a photo of an animal"; None: the class goes altogether',
    'preset': "setting that training starts from: 'lora' (ours), or one of the published 'paper', 'diffusers2024', 'da_fusion'",
    'training': 'dict(method=..., ...): attributes of ErasureTraining except seed, in place of those of the preset',
    'samples': 'dict(per_class=4, others=2, num_steps=None, guidance_scale=None): a sheet per class of images before and after, of the class itself and of '
    'other classes: the next so many, or a list of names. None: what the pipeline takes',
    'seed': 'a whole number; the same seed and recipe give the same weights (to the bit on a CPU)',
}
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(('classes', 'data', 'erase_from')),
    'prompts': {'type': 'synthaug_plugins.Basic', 'templates': 'a photo of a {}'},
    'synonyms': {},
    'preset': 'lora',
    'training': {},
    'samples': {},
    'seed': 0,
}
SAMPLES_DEFAULTS = {'per_class': 4, 'others': 2, 'num_steps': None, 'guidance_scale': None}
_MODEL = {'name', 'revision', 'variant', 'image_size', 'channels_last'}


def load_erasure_recipe(path: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`read_recipe` and `complete_erasure_recipe`.

    Raises:
        RecipeError: see there.
    """
    return complete_erasure_recipe(read_recipe(path, options))


def complete_erasure_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every key set and checked as far as that needs no other file.

    Raises:
        RecipeError: unknown or missing key, a value of the wrong kind or out of range; the key is named.
    """
    check_learn_keys(recipe, KEYS, 'erase classes')
    check_model(recipe, _MODEL, 'esd_digits')
    done = {**DEFAULTS, **recipe}
    for key, known in (('prompts', None), ('synonyms', None), ('training', None), ('samples', SAMPLES_DEFAULTS)):
        check_dict(key, done[key], known)
    if done['classes'] is not None:
        check_names('classes', done['classes'])
    for name, words in done['synonyms'].items():
        check_names(f'synonyms.{name}', words)
    check_texts(done, 'data', 'erase_from')
    done['samples'] = _samples(done['samples'])
    done = plain_data(done)
    erasure_options(done)
    return done


def _samples(given: Mapping[str, Any]) -> dict[str, Any]:
    done = {**SAMPLES_DEFAULTS, **given}
    if isinstance(done['others'], list | tuple) and done['others']:
        check_names('samples.others', done['others'])
    for name, least in (('per_class', 1), ('others', 0), ('num_steps', 1)):
        value = done[name]
        settled = (value is None and name == 'num_steps') or (isinstance(value, list | tuple) and name == 'others')
        if not settled and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise RecipeError(f'samples.{name} = {value!r} is no whole number of {least} or more.', 'Correct it.')
    return done


def erasure_options(recipe: Mapping[str, Any]) -> ErasureTraining:
    """The training options of a complete recipe."""
    return training_options(recipe['preset'], recipe['training'], recipe['seed'])


def decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a complete recipe that decides a class's weights, as dotted keys; more classes may be erased into the same folder.

    An option of training that is left out equals that of the preset.
    """
    model = {f'model.{key}': recipe['model'].get(key) for key in sorted(_MODEL - {'channels_last'})}
    training = {f'training.{key}': value for key, value in asdict(erasure_options(recipe)).items() if key not in FREE | {'seed'}}
    return {**model, **training, **{key: recipe[key] for key in ('prompts', 'synonyms', 'erase_from', 'seed')}}


class Concepts:
    """What says each class of a recipe.

    Args:
        recipe: complete.
        pipeline: whose text encoders read it.
        classes: to erase.
        others: further classes, which are only drawn.

    Raises:
        RecipeError: a prompt that is over the token limit, synonyms of a class that is not erased or that cannot be said.
        DataError: see `PromptSource`.
    """

    def __init__(self, recipe: Mapping[str, Any], pipeline: TextPipeline, classes: Sequence[str], others: Sequence[str] = ()) -> None:
        self._source: PromptSource = build_strict(dict(recipe['prompts']), PROMPTS)
        self._source.prepare(list(dict.fromkeys([*classes, *others])))
        self._synonyms, self._pipeline = recipe['synonyms'], pipeline
        for name in self._synonyms:
            if name not in classes and recipe['classes'] is None:
                raise RecipeError(f'synonyms names the class {name!r}, which is not erased.', nearest(name, classes))
        self.prompts = {name: self._prompts(name) for name in classes}
        self.plain = {name: self._fitted(self._source.prompt(name, 0, 0)) for name in [*classes, *others]}
        if recipe['erase_from'] is not None:
            self._fitted(recipe['erase_from'])

    def _prompts(self, name: str) -> list[str]:
        """Every prompt of a class, and again with each of its synonyms."""
        said = list(dict.fromkeys(self._source.prompt(name, 0, k) for k in range(self._source.cycle(name) or 1)))
        spoken = self._source.spoken(name)
        for word in self._synonyms.get(name, ()):
            if not all(spoken in prompt for prompt in said):
                raise RecipeError(f'synonyms.{name}: the prompts do not say {spoken!r}, so {word!r} has no place.', 'Write prompts with {}.')
        return [self._fitted(prompt.replace(spoken, word)) for word in [spoken, *self._synonyms.get(name, ())] for prompt in said]

    def _fitted(self, prompt: str) -> str:
        _, cut = self._pipeline.fit_prompt(prompt)
        if cut:
            raise RecipeError(f'The prompt {prompt!r} is over the token limit of {self._pipeline.name!r} by {" ".join(cut)!r}.', 'Shorten it.')
        return prompt


def erased_classes(recipe: Mapping[str, Any], folders: Sequence[str] | None) -> list[str]:
    """The classes of a run.

    Args:
        folders: class folders of the recipe's data, if it names any.

    Raises:
        RecipeError: neither names any.
        DataError: a class that has no folder.
    """
    if recipe['classes'] is None:
        if folders is None:
            raise RecipeError(
                'The recipe names no classes to erase.', "Add --classes cat,dog, classes=['cat', 'dog'], or --data FOLDER with one folder per class."
            )
        return list(folders)
    for name in recipe['classes'] if folders is not None else ():
        if name not in (folders or ()):
            raise DataError(f'The class {name!r} has no folder in {recipe["data"]!r}.', nearest(name, folders or ()))
    return list(recipe['classes'])
