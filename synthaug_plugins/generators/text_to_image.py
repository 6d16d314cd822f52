"""Images from prompts by any text-to-image pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.pipeline_options import PipelineOptions
from synthaug_plugins.registry import GENERATORS, options_of


@GENERATORS.register_module()
class TextToImage(DenoiserGenerator):
    """Sample a text-to-image model: Stable Diffusion 1 and 2, SDXL, SD 3, FLUX, PixArt, Sana, and few-step models of these.

    Each request has its own prompt and guidance scale; requests of all classes share batches. With the defaults an image is what
    the stock pipeline makes of the same noise with DDIM, Euler or flow Euler.

    Args:
        model: 'embedded:digits_sd', a folder in diffusers' layout, or a name on the hub such as 'stabilityai/stable-diffusion-xl-base-1.0'.
        prompts: what the model is told, an entry of `PROMPTS`: dict(type='synthaug_plugins.Basic', templates='a photo of a {}') (the
            default), dict(type='synthaug_plugins.Enhanced'), ClassNameFree, FromFile with a file of your own, or LearnedWords (the default
            with `words`).
        words: words.safetensors of `synthaug learn words`; Stable Diffusion 1 and 2 and SDXL. It must hold every class.
        erasures: folder of `synthaug learn erasure`; Stable Diffusion 1 and 2 and SDXL. An image is made by the model from which its class was
            erased, so that what it shows of the class comes from real images and learned words: the model-centric leakage defence of DA-Fusion
            (ICLR 2024). Classes do not share batches then.
        negative_prompt: what guidance leads away from: negative_prompt='blurry, text'.
        guidance_scale: 7.5 for all; dict(cat=3.0, dog=5.0) per class; [2.0, 7.0] draws one for each request by its seed. It is
            recorded with the image. 1 is no guidance and half the cost. Default: the pipeline's own.
        guidance_interval: (lowest, highest) sigma at which guidance acts: (0.3, 5) costs less and keeps diversity (Kynkaanniemi et
            al. 2024, arXiv 2404.07724).
        num_steps: of the pipeline's own scheduler. Default: the pipeline's.
        sampler: dict(solver='dpmpp_2m') solves better in few steps than 'euler', the default. Any option of `diffusion.sample`; one
            that says where noise levels lie (discretization='edm', sigmas=[...]) replaces those of the pipeline.
        precision: 'fp32', 'bf16' or 'fp16', in which the networks run. On a GPU take 'bf16'.
        images_per_prompt: so many images of a class in a row share a prompt (He et al. 2023: 10 for each sentence).
        image_size: pixels, one number or (height, width). Default: what the model was trained for.
        revision: branch, tag or commit on the hub; pin one so that the model cannot change.
        variant: of the weights on the hub, 'fp16' to fetch half as much.
        few_step: that the model was distilled to a few steps without guidance; read from its configs unless given, see `TextModel`.
        tiny_vae: an AutoencoderTiny, such as 'madebyollin/taesd', for previews: fast, and somewhat blurred.
        compile: torch.compile the network: some minutes once, then faster. Different batch sizes compile anew.
        channels_last: memory layout of U-Net and VAE. Which is faster depends on card and library: on an H200 with torch 2.11 it cost 12 % without
            compiling (tools/benchmarks/results/bench_generation_sd15_h200.txt).
        class_names: 'never' refuses to run where the name of a class would reach a text encoder: by a prompt, by the negative prompt, or in learned
            words that began from the name. What the model knows of the names then cannot leak into the images (the data-centric defence of
            DA-Fusion). Default: 'allowed'.
        safety: 'off'; 'flag' records the verdict of the pipeline's own safety checker in the column `nsfw`; 'drop' rejects what it
            flags, too. No image is blackened.

    Raises:
        ModelError: a model that cannot be had, is unsupported or incomplete, with the reason.
        RecipeError: an option that is unknown, out of range, or has no effect on this model.
    """

    @options_of(PipelineOptions)
    def __init__(
        self,
        model: str,
        num_steps: int | None = None,
        sampler: Mapping[str, Any] | None = None,
        precision: str = 'fp32',
        images_per_prompt: int = 1,
        **pipeline: Any,
    ) -> None:
        options = dict(sampler or {})
        if num_steps is not None and options.setdefault('num_steps', num_steps) != num_steps:
            raise RecipeError(f'num_steps = {num_steps!r} contradicts sampler.num_steps = {options["num_steps"]!r}.', 'Leave one of them out.')
        self.pipeline = PipelineOptions(**pipeline)
        told = self.pipeline.conditions(self.pipeline.text_model(model), images_per_prompt)
        super().__init__(told, options, precision)

    def identity(self) -> Mapping[str, Any]:
        return {**super().identity(), **self.pipeline.layout()}
