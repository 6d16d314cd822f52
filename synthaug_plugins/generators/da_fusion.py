"""DA-Fusion (Trabucco et al., ICLR 2024): real images edited with a learned word of their class, at intensities drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.pipeline_options import PipelineOptions
from synthaug_plugins.generators.sdedit import SDEdit
from synthaug_plugins.generators.strength import Strength, Strengths, numbers
from synthaug_plugins.registry import GENERATORS, options_of
from synthaug_plugins.store.plan import Part, request_share

NUM_STEPS = 50


@GENERATORS.register_module()
class DAFusion(SDEdit):
    """Edit real images by SDEdit with a learned word for their class and an intensity t0 that each request draws from a pool.

    Needs words that `synthaug learn words` learned from the same images. A request draws t0 by its seed, every value equally often, and records
    it: `select='params.t0 <= 0.5'` trains on some. Of S steps the last int(S * t0) run, as in the img2img pipelines of diffusers; at t0 = 1, too,
    an edit starts from the real image under the largest noise, not from noise alone. The requests of a class go through its real images evenly:
    `per_source = 10` makes the M = 10 variants of each that the paper makes.

    Args:
        model: Stable Diffusion 1 or 2 or SDXL, see `TextToImage`.
        words: words.safetensors of `synthaug learn words`, for this model; it must hold every class.
        t0: pool of intensities in (0, 1], each once. The paper's k values are 1/k, ..., k/k; it takes k = 4. One number is the same for all.
        prompts: a template with `{}` where the learned word goes, or several; or an entry of `PROMPTS`. Without words `{}` is the class's name.
        guidance_scale: see `TextToImage`; the paper's unless given.
        fit: how a real image becomes one of the model's shape: 'pad', 'crop' or 'squash', see `RealGuidance`. The paper squashes.
        masks: edit the object or the background only, see `RealGuidance`: dict(folder='data/voc/masks', edit='background').
        class_names: 'never': that no class name reaches the text encoder is checked before any weights load, see `TextToImage`. Words that began
            from class names, as the published words of the ICLR version did, need 'allowed'.
        erasures: folder of `synthaug learn erasure`: each class is edited by the model from which it was erased, see `TextToImage`.
        sampler, precision: see `TextToImage`. S = 50 unless sampler.num_steps says otherwise.
        negative_prompt, guidance_interval, image_size, revision, variant, few_step, tiny_vae, compile, channels_last, safety: see `TextToImage`.

    Raises:
        RecipeError: t0 empty, repeated, outside (0, 1] or so small that no step runs; no words where class names are forbidden; an option that is
            out of range or has no effect.
        ModelError: see `TextToImage`; no such file of words, or words for another model.
    """

    @options_of(PipelineOptions)
    def __init__(
        self,
        model: str,
        words: str | None = None,
        t0: float | Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        prompts: str | Sequence[str] | Mapping[str, Any] = 'a photo of a {}',
        guidance_scale: float | Mapping[str, float] | Sequence[float] | None = 7.5,
        fit: str = 'pad',
        masks: Mapping[str, Any] | None = None,
        class_names: str = 'never',
        sampler: Mapping[str, Any] | None = None,
        precision: str = 'fp32',
        **pipeline: Any,
    ) -> None:
        if not isinstance(prompts, Mapping):
            if words is None and class_names == 'never':
                raise RecipeError(
                    f"DAFusion has no words for its prompt {prompts!r}, and class_names = 'never' forbids to say the class's name.",
                    "Learn them from the same images (synthaug learn words) and name the file: words='.../words.safetensors'. Or set class_names='allowed'.",
                )
            prompts = {'type': 'Basic' if words is None else 'LearnedWords', 'templates': prompts}
        shared = PipelineOptions(prompts=prompts, words=words, guidance_scale=guidance_scale, class_names=class_names, **pipeline)
        options = dict(sampler or {})
        if not {'preset', 'sigmas'} & set(options):
            options.setdefault('num_steps', NUM_STEPS)
        super().__init__(shared.conditions(shared.text_model(model)), options, precision, fit, masks)
        self._layout = shared.layout()
        make = Strengths(self.model, self.sampler)
        self.strengths = [make.by_strength(share, 't0') for share in numbers('t0', t0)]

    def strength_of(self, part: Part, number: int, seed: int) -> Strength:
        """One of the pool, uniformly, by the seed."""
        return self.strengths[int(request_share(seed, 't0') * len(self.strengths))]

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), **self._layout}
