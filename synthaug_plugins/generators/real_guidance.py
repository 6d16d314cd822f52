"""Variants of real images: noise is added up to some level, and the model takes it away again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.generators.conditions import Conditions, LabelConditions
from synthaug_plugins.generators.guidance import build_guidance
from synthaug_plugins.generators.pipeline_options import PipelineOptions
from synthaug_plugins.generators.sdedit import SDEdit
from synthaug_plugins.generators.strength import T_STAR, Strength, Strengths, check_shots, numbers, t_star
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.registry import GENERATORS, options_of
from synthaug_plugins.store.plan import Part


@GENERATORS.register_module()
class RealGuidance(SDEdit):
    """Start from a real image of the class plus noise (SDEdit, Meng et al. 2022; "real guidance", He et al. 2023).

    Low strength returns the image almost as it was; high strength forgets it. The requests of a class go through its real
    images first, then through the strengths, then on with new seeds: n images times m strengths are covered evenly, and 800 images of
    16 shots are 50 variants of each.

    The model is one of our own folders (pixels, class labels) or a text-to-image pipeline (latents, prompts). The latter encodes each
    real image once, as the mean of the VAE's posterior, so that a source has one start whatever the seed.

    Args:
        model: `embedded:digits_edm` or a folder with config.json and model.safetensors; or `embedded:digits_sd`, a folder in diffusers'
            layout or a name on the hub, see `TextToImage`.
        sigma: noise level at the start, in units of the model's pixels in [-1, 1] or of its latents; a number or a list. The sampler
            gets a grid that begins exactly there (at the nearest level of a model that knows only some), with as many steps as the
            full grid spends below that level, so that a step has the same size.
        t0: share in (0, 1] of the sampler's steps that run, rounded, at least one; a number or a list.
        strength: as in the img2img pipelines of diffusers: int(num_steps * strength) steps run; a number or a list.
        shots: He et al.'s strength for so many real images per class: 16 (t* = 15 of 100), 8 (20), 4 (35), 2 (40), 1 (50); the
            nearest for others; 'auto' counts them. Exactly one of sigma, t0, strength and shots.
        strength_map: how t* is taken over, with shots only: 'paper' runs t* / 100 of the steps; 'snr_matched' begins at the noise level
            of GLIDE's cosine schedule at t*, a far lower strength for latent models. Default: 'paper'.
        use_labels: tell a model folder's model the class. False needs an unconditional model, or one trained with label dropout; it
            works for classes that the model never saw.
        fit: how a real image becomes one of the model's shape: 'crop' the centre; 'squash'; or 'pad', the whole image in its own shape, which
            the variant then has, too. Smaller ones are enlarged (bicubic), and that is said.
        masks: edit the object or the background only: dict(folder='data/voc/masks', edit='object' or 'background', dilate=16, soft=0), a folder
            as `synthaug import` makes it, with `<class>/<stem>.png` for each image: 0 is background, all else object (in a palette 255, VOC's void,
            is background, too). The edited region is grown by a maximum filter `dilate` wide and, with `soft`, fades over so wide a ramp at its
            edge (at most dilate / 2); both count pixels of a canvas of 512, whatever the model's. A variant then has its real image's size and,
            outside of the region, its bytes. An inpainting pipeline needs masks; with any other model what is known is put back at every step.
        sampler, precision: see `EDM`, and for a pipeline `TextToImage`; num_steps is that of the full grid, from sigma_max down, of
            which a strength below full runs fewer, and churn per step is that of the full grid.
        guidance: see `EDM`; not for a pipeline.
        prompts, words, erasures, negative_prompt, guidance_scale, guidance_interval, image_size, revision, variant, few_step, tiny_vae, compile,
            channels_last, class_names, safety: see `TextToImage`; for a pipeline only. He et al. use the plain class prompt, which is the default.

    Raises:
        RecipeError: not exactly one way to say the strength, a value out of range, or an option for the other kind of model.
        ModelError: see `DenoiserModel` and `TextModel`; or labels that the model does not take, or cannot do without.
        DataError: a mask that is missing, of another size, or leaves nothing to edit; in `prepare`, shots='auto' for classes with different numbers
            of images.
    """

    @options_of(PipelineOptions)
    def __init__(
        self,
        model: str,
        sigma: float | Sequence[float] | None = None,
        t0: float | Sequence[float] | None = None,
        strength: float | Sequence[float] | None = None,
        shots: int | str | None = None,
        strength_map: str | None = None,
        use_labels: bool = True,
        fit: str = 'crop',
        masks: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
        guidance: Sequence[Mapping[str, Any]] = (),
        precision: str = 'fp32',
        **pipeline: Any,
    ) -> None:
        shared = PipelineOptions(**pipeline)
        opened = shared.open(model)
        told: Conditions
        if isinstance(opened, TextModel):
            if not use_labels or guidance:
                key, value = ('guidance', guidance) if use_labels else ('use_labels', use_labels)
                cure = 'Use guidance_scale.' if use_labels else "Use prompts=dict(type='synthaug_plugins.ClassNameFree') to say nothing of the class."
                raise RecipeError(f'{key} = {value!r}: {model!r} is a text-to-image pipeline, which takes prompts.', cure)
            told, self._options = shared.conditions(opened), shared.layout()
        else:
            told, self._options = LabelConditions(opened, use_labels, build_guidance(guidance), without_labels=True), {'use_labels': use_labels}
        super().__init__(told, sampler, precision, fit, masks)
        if isinstance(opened, DenoiserModel):
            _check_labels(opened, use_labels)
        ways = {'sigma': sigma, 't0': t0, 'strength': strength, 'shots': shots}
        said = {key: value for key, value in ways.items() if value is not None}
        if len(said) != 1:
            raise RecipeError(
                f'RealGuidance has {", ".join(f"{k} = {v!r}" for k, v in (said or ways).items())}.', 'Set exactly one of sigma, t0, strength and shots.'
            )
        if strength_map is not None and shots is None:
            raise RecipeError(f'strength_map = {strength_map!r} goes with shots only.', 'Leave it out, or set shots.')
        self._shots, self._strength_map = shots, strength_map or 'paper'
        make = Strengths(self.model, self.sampler)
        if sigma is not None:
            self.strengths = [make.by_sigma(s) for s in numbers('sigma', sigma)]
        elif t0 is not None:
            self.strengths = [make.by_t0(t) for t in numbers('t0', t0)]
        elif strength is not None:
            self.strengths = [make.by_strength(s) for s in numbers('strength', strength)]
        else:
            check_shots(shots, self._strength_map)
            # With 'auto' the number is known in `prepare`; the strongest is tried now, so that an impossible sampler is refused early.
            self.strengths = [make.by_shots(1 if shots == 'auto' else int(shots or 1), self._strength_map)]

    def settle(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        if self._shots is None:
            return
        shots = self._count_shots(classes) if self._shots == 'auto' else int(self._shots)
        if shots not in T_STAR:
            table = ', '.join(map(str, sorted(T_STAR)))
            say(f'shots = {shots} is not in the table of He et al. ({table}): its nearest entry is taken, t* = {t_star(shots)}.')
        self.strengths = [Strengths(self.model, self.sampler).by_shots(shots, self._strength_map)]
        if self._shots == 'auto':
            say(f"shots = 'auto': {shots} real images per class, t* = {t_star(shots)} of 100, sigma = {self.strengths[0].params['sigma']:.4g}.")

    def _count_shots(self, classes: Sequence[str]) -> int:
        if self.real_images is None:
            raise DataError("shots = 'auto' counts the real images, but there are none.", 'Give the folder of real images.')
        counts = {name: len(self.real_images.ids(name)) for name in classes}
        fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[fewest] != counts[most]:
            what = f"shots = 'auto', but the class {fewest!r} has {counts[fewest]} real images and {most!r} has {counts[most]}."
            raise DataError(what, 'Set shots to a number, or give every class as many images.')
        return counts[most]

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), **self._options}

    def strength_of(self, part: Part, number: int, seed: int) -> Strength:
        """After all real images of a class were used with one strength comes the next."""
        return self.strengths[(part.first + number) // len(part.sources) % len(self.strengths)]


def _check_labels(model: DenoiserModel, use_labels: bool) -> None:
    if use_labels and not model.takes_labels:
        raise ModelError(f'The model {model.name!r} takes no class labels.', 'Set use_labels=False.')
    if not use_labels and not model.runs_without_labels:
        raise ModelError(f'The model {model.name!r} was trained without label dropout and cannot run without labels.', 'Set use_labels=True.')
