"""Prompts and guidance scales: what a text-to-image pipeline is told of each request."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.generators.class_names import CLASS_NAMES, NoClassNames
from synthaug_plugins.generators.conditions import Conditions
from synthaug_plugins.generators.guidance_scale import GuidanceScale, guidance_weights
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.prompts.base import PromptSource
from synthaug_plugins.prompts.placeholders import placeholders
from synthaug_plugins.registry import PROMPTS, build_strict
from synthaug_plugins.store.plan import Part, Request

if TYPE_CHECKING:
    import numpy as np
    import torch

    from synthaug_plugins.diffusion import Denoiser
    from synthaug_plugins.diffusion.guidance import Term
    from synthaug_plugins.real_images import RealImages

SAFETY = ('off', 'flag', 'drop')
_PROMPTS_LOOKED_AT = 4096  # of all classes together, before the plan, of a source that does not say how many it has


class PromptConditions(Conditions):
    """Prompts for a text-to-image pipeline, and classifier-free guidance with a scale per request.

    Prompts over the token limit are cut at a word, and that is said once. The prompt of a request is what is left. A prompt that named its
    class and is cut before the name is refused: the classes could not be told apart. All encoders of a pipeline are given the same cut
    prompt, so it is lost to all of them or to none; only FLUX's CLIP may see less of it, which is no reason to refuse what its T5 sees.

    Args:
        model: the pipeline.
        prompts: an entry of `PROMPTS`; unless given, Basic without options, and LearnedWords for a model with learned words.
        negative_prompt: what guidance leads away from, in place of the empty prompt.
        guidance_scale: see `GuidanceScale`.
        guidance_interval: (lowest, highest) sigma at which guidance acts; outside, the network runs once per image, not twice.
        images_per_prompt: so many positions of a class in a row share a prompt.
        class_names: 'never' makes sure that no name of a class reaches a text encoder, see `NoClassNames`; 'allowed' does not look.
        safety: what becomes of images that the pipeline's own safety checker flags: 'off' runs none, 'flag' writes the column `nsfw`
            (0 or 1), 'drop' rejects them too. No image is blackened.

    Raises:
        RecipeError: an option that is out of range or has no effect on this model.
        ModelError: a safety verdict is wanted of a pipeline without a checker.
    """

    def __init__(
        self,
        model: TextModel,
        prompts: Mapping[str, Any] | None = None,
        negative_prompt: str = '',
        guidance_scale: float | Mapping[str, float] | Sequence[float] | None = None,
        guidance_interval: Sequence[float] | None = None,
        images_per_prompt: int = 1,
        safety: str = 'off',
        class_names: str = 'allowed',
    ) -> None:
        from synthaug_plugins.diffusion.guidance import check_strength

        self.model: TextModel = model
        self.image_shape = (3, *model.image_size)
        default = {'type': 'Basic' if model.words is None else 'LearnedWords'}
        self.prompts: PromptSource = build_strict(dict(prompts) if prompts is not None else default, PROMPTS)
        self.scale = GuidanceScale(guidance_scale, model)
        if not isinstance(negative_prompt, str):
            raise RecipeError(f'negative_prompt = {negative_prompt!r} is no text.', "Leave it out, or write for example negative_prompt='blurry'.")
        self._check_has_effect('negative_prompt', negative_prompt, '')
        self._check_has_effect('guidance_interval', guidance_interval, None)
        interval = (0.0, math.inf) if guidance_interval is None else guidance_interval
        check_strength('guidance_interval', 0.0, interval)
        self.negative_prompt, self.interval = negative_prompt, (float(interval[0]), float(interval[1]))
        if isinstance(images_per_prompt, bool) or not isinstance(images_per_prompt, int) or images_per_prompt < 1:
            raise RecipeError(f'images_per_prompt = {images_per_prompt!r} is no whole number of 1 or more.', 'He et al. make 10 per sentence.')
        if safety not in SAFETY:
            raise RecipeError(f'safety = {safety!r} is unknown.', nearest(str(safety), SAFETY))
        if safety != 'off' and not model.has_safety_checker:
            raise ModelError(f'safety = {safety!r}: the pipeline {model.name!r} brings no safety checker.', "Set safety='off', or use an inspector.")
        if class_names not in CLASS_NAMES:
            raise RecipeError(f'class_names = {class_names!r} is unknown.', nearest(str(class_names), CLASS_NAMES))
        self.images_per_prompt, self.safety, self.class_names = images_per_prompt, safety, class_names
        self._no_names: NoClassNames | None = None
        self._fit = lru_cache(maxsize=65536)(model.fit_prompt)
        self._prepared: tuple[str, ...] | None = None
        self._say: Callable[[str], None] = lambda sentence: None
        self._said_cut = False

    def _check_has_effect(self, key: str, value: Any, default: Any) -> None:
        """Refuse what only classifier-free guidance heeds where there is none."""
        if value == default:
            return
        if self.model.guidance == 'distilled':
            what = f'{key} = {value!r} has no effect: {self.model.name!r} is told its guidance scale and runs once per step.'
            raise RecipeError(what, f'Leave {key} out.')
        if not self.scale.guides:
            raise RecipeError(f'{key} = {value!r} has no effect with guidance_scale = 1.', f'Leave {key} out, or use a larger guidance_scale.')

    def check(self, classes: Sequence[str], real_images: RealImages | None = None) -> None:
        """See `Conditions.check`."""
        self.scale.check(classes)
        self.model.check_weights(safety=self.safety != 'off')
        self.model.check_learned(classes)
        if self.negative_prompt:
            _, cut = self.model.fit_prompt(self.negative_prompt)
            if cut:
                raise RecipeError(f'negative_prompt is over the token limit by the words {" ".join(cut)!r}.', 'Shorten it.')

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        """See `Generator.prepare`: settle the prompts, say what the user should know of them.

        Raises:
            RecipeError: a prompt is cut before its class name, or holds a placeholder that is no learned word; or no prompt of a class says its
                learned word.
        """
        if self._prepared == tuple(classes):
            return
        self.prompts.prepare(classes, say)
        if self.class_names == 'never':
            self._no_names = NoClassNames(self.model, classes, self.prompts.called())
            self._no_names.check_words()
            self._no_names.check('negative_prompt', self.negative_prompt)
        self._say, self._prepared = say, tuple(classes)
        for note in self.prompts.notes():
            say(note)
        n = max(1, min(256, _PROMPTS_LOOKED_AT // max(len(classes), 1)))
        looked_at = dict.fromkeys((label, self.prompts.prompt(label, 0, k)) for label in classes for k in range(self.prompts.cycle(label) or n))
        cut = {prompt: words for label, prompt in looked_at if (words := self._fitted(label, prompt)[1])}
        self._check_words_said(list(looked_at))
        if cut:
            prompt, words = next(iter(cut.items()))
            self._say_cut(f'{len(cut)} of {len({prompt for _, prompt in looked_at})} prompts are', prompt, words)

    def _check_words_said(self, prompts: Sequence[tuple[str, str]]) -> None:
        """Refuse (RecipeError) learned words where no prompt of a class says its own word: its images would be of something else. prompts: (class, prompt)."""
        words = self.model.words
        if words is None:
            return
        said = {label for label, prompt in prompts if words.of(label) in placeholders(prompt)}
        for label, prompt in prompts:
            if label not in said:
                what = f'words = {str(words.file)!r} has no effect on the class {label!r}: no prompt of it says {words.of(label)!r}, {prompt!r} for one.'
                raise RecipeError(what, "Leave words out, or set prompts=dict(type='synthaug_plugins.LearnedWords').")

    def _fitted(self, label: str, whole: str) -> tuple[str, list[str]]:
        """What the model sees of a class's prompt, and the words that were cut; refused (RecipeError) without the class name that it had."""
        prompt, cut = self._fit(whole)
        if self._no_names is not None:
            self._no_names.check('prompt', prompt)
        if cut and self.prompts.loses_name(label, whole, prompt):
            raise RecipeError(
                f'The prompt {whole!r} of the class {label!r} is over the token limit of {self.model.name!r}, which sees no more than {prompt!r}, '
                'without the class name.',
                'Put the class name nearer to the front, or give the class a shorter one in a names file.',
            )
        return prompt, cut

    def _safety_files(self) -> list[str]:
        """Weights that decide the verdicts; refused (ModelError) when they are missing."""
        return [] if self.safety == 'off' else self.model.files.weight_files('safety_checker', 'transformers')

    def _say_cut(self, which: str, prompt: str, words: Sequence[str]) -> None:
        if not self._said_cut:
            self._said_cut = True
            self._say(f'{which} over the token limit of {self.model.name!r} and will be cut; of {prompt!r} it does not see {" ".join(words)!r}.')

    def identity(self) -> dict[str, Any]:
        """See `Conditions.identity`; complete after `prepare`."""
        low, high = self.interval
        return {
            'prompts': self.prompts.identity(),
            'images_per_prompt': self.images_per_prompt,
            'negative_prompt': self.negative_prompt,
            'guidance_scale': self.scale.given,
            'guidance_interval': [low, None if math.isinf(high) else high],
            'class_names': self.class_names,
            'safety': self.safety,
            # The commit in the model's identity stands for the files of the hub.
            'safety_sha256': self.model.files.sha256(files) if (files := self._safety_files()) and self.model.files.commit is None else None,
        }

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[str, dict[str, Any]]:
        """See `Conditions.tell`: the prompt as the model sees it, and the guidance scale."""
        whole = self.prompts.prompt(part.class_name, recipe_seed, (part.first + number) // self.images_per_prompt)
        prompt, cut = self._fitted(part.class_name, whole)
        if cut:
            self._say_cut('Prompts are', whole, cut)
        return prompt, {'guidance_scale': self.scale.of(part.class_name, seed)}

    def bucket(self, request: Request) -> Hashable:
        """See `Conditions.bucket`: with erasures each class has a network of its own."""
        return None if self.model.erasures is None else request.class_name

    def begin(self, requests: Sequence[Request]) -> None:
        """See `Conditions.begin`: the network with the batch's class erased.

        Raises:
            DataError: the class has no erasure.
        """
        if self.model.erasures is not None:
            (class_name,) = {request.class_name for request in requests}  # they share a bucket
            self.model.erase(class_name)

    def _scales(self, requests: Sequence[Request]) -> list[float]:
        return [float(r.params['guidance_scale']) for r in requests]

    def cond(self, requests: Sequence[Request], device: torch.device) -> dict[str, Any]:
        """See `Conditions.cond`: encoded prompts, and the scale for a model that is told it."""
        scales = self._scales(requests) if self.model.guidance == 'distilled' else None
        return self.model.conditions([str(r.prompt) for r in requests], guidance_scale=scales)

    def terms(self, requests: Sequence[Request], device: torch.device, load: Callable[[DenoiserModel], Denoiser], options: Mapping[str, Any]) -> Sequence[Term]:
        """See `Conditions.terms`: classifier-free guidance, D + (scale - 1) (D(prompt) - D(negative prompt)), each request by its own scale."""
        from synthaug_plugins.diffusion import ClassifierFree

        scales = self._scales(requests)
        if self.model.guidance != 'free' or all(scale == 1 for scale in scales):
            return []
        return [ClassifierFree(guidance_weights(scales, device), uncond=self.model.conditions([self.negative_prompt], negative=True), interval=self.interval)]

    def judge(self, requests: Sequence[Request], images: np.ndarray) -> tuple[dict[int, str], dict[str, np.ndarray]] | None:
        """See `Conditions.judge`: the safety checker's verdicts."""
        if self.safety == 'off':
            return None
        flagged = self.model.flagged(images)
        assert flagged is not None  # that there is a checker was made sure of at the start
        reasons = {int(k): 'flagged by the safety checker' for k in flagged.nonzero()[0]} if self.safety == 'drop' else {}
        return reasons, {'nsfw': flagged.astype('float64')}
