"""A text-to-image pipeline of diffusers as generators use it: known without its weights, then loaded onto a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.base import check_embedding
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.encoding import PromptEncoder, SafetyChecker, text_pipeline, told_scale
from synthaug_plugins.models.erasure import Eraser
from synthaug_plugins.models.families import Told, call_default
from synthaug_plugins.models.pipeline import TextPipeline
from synthaug_plugins.models.words import make_room, set_rows
from synthaug_plugins.weights import EMBEDDED, PIPELINE_INDEX, embedded_folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion.adapters import DiffusersDenoiser
    from synthaug_plugins.diffusion.latents import Latents


class TextModel(TextPipeline):
    """A diffusers text-to-image pipeline: Stable Diffusion 1 and 2, SDXL, SD 3, FLUX, PixArt, Sana, and few-step models of these; or one for inpainting
    of Stable Diffusion 1 and 2 or SDXL.

    Text is encoded by the pipeline class's own `encode_prompt`; the network runs as a `DiffusersDenoiser`, so that every sampler and
    guidance of this package works on it. Captions are not cleaned (the pipelines' `clean_caption`).

    Args:
        name: `embedded:digits_sd`, a folder in diffusers' layout, or a name on the Hugging Face hub, see `ModelFiles`.
        revision: branch, tag or commit on the hub. The commit is recorded.
        variant: of the weights, such as 'fp16'.
        image_size: (H, W) in pixels, or one number; what the model was trained for unless given.
        tiny_vae: a folder or hub name of an AutoencoderTiny for these latents, in place of the VAE: fast and somewhat blurred.
        few_step: whether the model was distilled to a few steps without guidance (Turbo, Lightning, LCM-LoRA, schnell). Unless given,
            this is read from its configs: LCM's scheduler, Euler's with trailing timesteps and noise prediction, a FLUX without a
            guidance embedding. A config of SD 3.5 Turbo does not show it: say so.
        words: a file of learned words (see `Words`), which prompts may then say: Stable Diffusion 1 and 2 and SDXL only.
        channels_last: memory layout of U-Net and VAE.
        compile: torch.compile the network.
        erasures: folder of concept erasures that were learned on this model, see `Erasures`; `erase` applies them.

    Attributes:
        name: as given.
        family: 'sd', 'sdxl', 'sd3', 'flux', 'pixart' or 'sana'.
        image_size: (H, W) in pixels.
        size: (C, h, w) of latents, which the sampler's x is.
        flow: whether the model is one of flow matching.
        guidance: 'free' (classifier-free guidance works), 'distilled' (the network is told a scale, negative prompts do nothing) or
            'none' (a few-step model; the scale must be 1).
        default_guidance_scale, default_steps: those of the pipeline's own call; 1 and 4 for few-step models.
        inpaints: whether the network sees a mask and the masked image beside the latents, and runs with them only (`diffusion.Region.condition`).
        timesteps: how many the model was trained with.
        has_safety_checker: whether the pipeline brings one, see `flagged`.
        words: the file of learned words, or None.
        tokens: the tokenizers, with the learned words among their tokens.

    Raises:
        ModelError: an unsupported pipeline (with the reason), a missing or wrong part, pickled weights, a hub name that cannot be had.
        RecipeError: an image size that the model cannot make.
    """

    def __init__(self, name: str, *, channels_last: bool = False, compile: bool = False, **options: Any) -> None:
        super().__init__(name, **options)
        self._channels_last, self._compile = channels_last, compile
        self._denoiser: DiffusersDenoiser | None = None
        self._encoder: PromptEncoder | None = None
        self._text_encoders: dict[str, Any] = {}
        self._safety: SafetyChecker | None = None
        self._eraser: Eraser | None = None

    def run_as(self) -> dict[str, Any]:
        """See `Model.run_as`."""
        return {'guidance': self.guidance, 'channels_last': self._channels_last, 'compile': self._compile}

    def load(self, device: torch.device, dtype: torch.dtype) -> DiffusersDenoiser:
        """Read all weights; the denoiser, for sampling only. Afterwards `conditions`, `encode`, `decode` and `flagged` work.

        The VAE runs in dtype too, except that SDXL's stays in float32 where its config says that it overflows in float16 (force_upcast).

        Raises:
            ModelError: weights are missing or cannot be read, or words or erasures were learned for other weights.
        """
        import torch

        from synthaug_plugins.diffusion.adapters import DiffusersDenoiser

        self.check_learned(())
        weights = self._weights()
        self.files.fetch([path for paths in weights.values() for path in paths])
        network = self.files.load(self._family.network, self._parts[self._family.network], dtype).to(device)
        if self._family.network == 'unet':
            network = network.to(memory_format=self._memory_format())
        vae = self.load_autoencoder(device, dtype).vae
        encoders = {e: self.files.load(e, self._parts[e], dtype, 'transformers').to(device) for e in self._encoders}
        self._text_encoders = encoders
        if self.tokens.words:
            for e, encoder in encoders.items():
                make_room(encoder, self.tokenizer(e))
        parts = {**encoders, **self.tokens.tokenizers, self._family.network: network}
        self._encoder = PromptEncoder(self._family, text_pipeline(self._family, self.pipeline_class, self._index, parts), self._encode_options())
        self._eraser = None if self.erasures is None else Eraser(self.erasures, network)
        self._denoiser = DiffusersDenoiser(torch.compile(network) if self._compile else network, self._scheduler_config, vae=vae)
        self._device, self._dtype = device, dtype
        if self.words is not None:
            self.set_words({e: self.words.rows(e) for e in encoders})
        return self._denoiser

    def set_words(self, rows: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give words their vectors; they must be among `tokens`. All other rows of the encoders' tables keep their bits. After `load`.

        Args:
            rows: encoder -> word -> vectors (vectors, width).
        """
        self._loaded()
        for e, words in rows.items():
            set_rows(self._text_encoders[e], self.tokenizer(e), words)
        assert self._encoder is not None
        self._encoder.forget()

    def load_autoencoder(self, device: torch.device, dtype: torch.dtype) -> Latents:
        """The autoencoder alone; neither network nor text encoders are read. Its dtype: as for `load`.

        Raises:
            ModelError: its weights are missing or cannot be read.
        """
        import diffusers
        import torch

        from synthaug_plugins.diffusion.latents import Latents

        if self.tiny_vae:
            vae = self.tiny_vae.load('', diffusers.AutoencoderTiny, dtype)
        else:
            overflows = self.family == 'sdxl' and dtype == torch.float16 and self._vae_config.get('force_upcast', True)
            self.files.fetch(self._weights()['vae'])
            vae = self.files.load('vae', self._parts['vae'], torch.float32 if overflows else dtype)
        return Latents(vae.to(device, memory_format=self._memory_format()))

    def _memory_format(self) -> Any:
        import torch

        return torch.channels_last if self._channels_last else torch.contiguous_format

    def _encode_options(self) -> dict[str, Any]:
        instruction = call_default(self.pipeline_class, 'complex_human_instruction')
        return {'max_length': self._max_length, 'image_size': self.image_size, 'network': self._network_config, 'instruction': instruction}

    def conditions(self, prompts: Sequence[str], guidance_scale: float | Sequence[float] | Tensor | None = None, negative: bool = False) -> dict[str, Any]:
        """What the denoiser is conditioned on: one row per prompt, in order. Each unique prompt is encoded once and kept.

        Args:
            guidance_scale: what a 'distilled' model is told, one number or one per prompt; default_guidance_scale unless given.
                Other models are not told it.
            negative: these are prompts to move away from. Two families encode them in another way: SDXL (an empty one is zeros),
                Sana (no instruction before it).

        Returns: the names of the network's arguments -> tensors (or mappings of tensors) with len(prompts) rows, on the device.
        """
        self._loaded()
        assert self._encoder is not None
        for prompt in prompts:
            self.check_placeholders(prompt)
        return self._encoder(prompts, negative) | self._told_scale(guidance_scale, len(prompts))

    def _told_scale(self, guidance_scale: float | Sequence[float] | Tensor | None, count: int) -> dict[str, Tensor]:
        """The guidance scale as the network is told it, `count` rows; nothing for a network that is not told."""
        if self.guidance != 'distilled':
            return {}
        scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        return told_scale(scale, count, self._network_config.get('time_cond_proj_dim'), self._device)

    def unconditional(self) -> dict[str, Any]:
        """See `Model.unconditional`: the empty prompt, as it is encoded where guidance leads away from it."""
        return self.conditions([''], negative=True)

    def tokenise(self, prompts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Prompts as the pipeline tells them its text encoders, for `token_conditions`. After `load`.

        Returns: encoder -> 'input_ids' and 'attention_mask', (len(prompts), token limit) int64 each, on the device.

        Raises:
            RecipeError: a prompt holds a placeholder that is no learned word, or is over the token limit.
        """
        self._loaded()
        for prompt in prompts:
            if cut := self.fit_prompt(prompt)[1]:
                raise RecipeError(f'The prompt {prompt!r} is over the token limit of {self.name!r} by {" ".join(cut)!r}.', 'Write a shorter one.')
        texts, found = [self.tokens.expand(p) for p in prompts], {}
        for e in self._text_encoders:
            tokenizer = self.tokenizer(e)
            told = tokenizer(texts, padding='max_length', max_length=tokenizer.model_max_length, truncation=True, return_tensors='pt')
            found[e] = {name: told[name].to(self._device) for name in ('input_ids', 'attention_mask')}
        return found

    def token_conditions(self, tokens: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        """As `conditions`, of prompts that are tokens already, with gradients to what enters the tables of the text encoders. Nothing is kept.

        Only for families that take learned words, see `refuse_words`. All prompts go through the encoders in one batch.
        """
        self._loaded()
        assert self._family.encode_tokens is not None
        told = self._family.encode_tokens(self._text_encoders, tokens, self._encode_options())
        return self._family.conditions(told, self._encode_options()) | self._told_scale(None, len(told.states))

    def embedded(self, tokens: Tensor, pooled: Tensor | None = None, guidance_scale: float | Sequence[float] | Tensor | None = None) -> dict[str, Any]:
        """See `Model.embedded`: as `conditions`, of embeddings in place of encoded prompts. All states count, where a network is told which do.

        Raises:
            ModelError: an inpainting pipeline, embeddings of another width than the network's, or the weights are not loaded.
        """
        self._loaded()
        check_embedding(self.name, self.embedding_shape(tokens.shape[1] if tokens.ndim == 3 else None), tokens, pooled)
        told = Told(tokens.to(self._device), None if pooled is None else pooled.to(self._device))
        return self._family.conditions(told, self._encode_options()) | self._told_scale(guidance_scale, len(tokens))

    def embedding_of(self, text: str, tokens: int | None = None) -> tuple[Tensor, Tensor | None]:
        """See `Model.embedding_of`: the first states of a prompt that count, the last of them repeated where it has fewer.

        Raises:
            ModelError: an inpainting pipeline, or the weights are not loaded.
            RecipeError: see `embedding_shape` and `check_placeholders`.
        """
        import torch

        self._loaded()
        assert self._encoder is not None
        K = self.embedding_shape(tokens).tokens
        self.check_placeholders(text)
        told = self._encoder.told(text)
        counted = told.states[0] if told.mask is None else told.states[0][told.mask[0].bool()]
        states = counted[torch.arange(K, device=counted.device).clamp(max=len(counted) - 1)]
        return states.float().cpu(), None if told.pooled is None else told.pooled[0].float().cpu()

    def tokenizer(self, encoder: str) -> Any:
        """The tokenizer of a text encoder."""
        return self.tokens.tokenizers[self._tokenizer_of[encoder]]

    def tables(self) -> dict[str, Any]:
        """Text encoder -> its table of tokens, a torch.nn.Embedding, after `load`."""
        self._loaded()
        return {e: encoder.get_input_embeddings() for e, encoder in self._text_encoders.items()}

    def erase(self, class_name: str | None) -> None:
        """Make the network the one with this class erased, and no other; None: its own weights, to the bit. After `load`.

        Only weights that differ are copied, in place, so that a compiled network stays compiled. Calling it again for the same class is free.

        Raises:
            ModelError: no erasures were given, or the weights are not loaded.
            DataError: the class has no erasure.
        """
        self._loaded()
        if self._eraser is None:
            raise ModelError(f'model = {self.name!r}: there are no erasures to apply.', 'Give erasures=FOLDER.')
        self._eraser(class_name)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1], see `DiffusersDenoiser.encode`."""
        return self._loaded().encode(images, noise)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images, see `DiffusersDenoiser.posterior`."""
        return self._loaded().posterior(images)

    def decode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of latents, see `DiffusersDenoiser.decode`."""
        return self._loaded().decode(x)

    @property
    def is_loaded(self) -> bool:
        """Whether `load` was called."""
        return self._denoiser is not None

    @property
    def denoiser(self) -> DiffusersDenoiser:
        """What `load` returned."""
        return self._loaded()

    def _loaded(self) -> DiffusersDenoiser:
        if self._denoiser is None:
            raise ModelError(f'model = {self.name!r}: its weights are not loaded.', 'Call load first.')
        return self._denoiser

    def flagged(self, images: np.ndarray) -> np.ndarray | None:
        """Which images (B, H, W, 3) uint8 the pipeline's safety checker takes for unsafe: (B,) bool; None if it brings none.

        Raises:
            ModelError: its weights are missing.
        """
        if not self.has_safety_checker:
            return None
        self._loaded()
        self._safety = self._safety or SafetyChecker(self.files, self._device, self._dtype)
        return self._safety(images)


def open_model(name: str, **options: Any) -> DenoiserModel | TextModel:
    """A model of either kind: a pipeline if its folder holds model_index.json or it is a name on the hub, else a model folder of our own.

    Args:
        name: `embedded:NAME`, a folder, or a name on the hub.
        **options: of `TextModel`.

    Raises:
        ModelError: see `TextModel`, `DenoiserModel`.
        RecipeError: options of a pipeline for a model folder of our own.
    """
    folder = embedded_folder(name) if name.startswith(EMBEDDED) else Path(name).expanduser()
    if (folder / PIPELINE_INDEX).is_file() or not (folder.exists() or name.startswith(EMBEDDED)):
        return TextModel(name, **options)
    if given := [key for key, value in options.items() if value is not None]:
        raise RecipeError(f'{given[0]} = {options[given[0]]!r} is an option of text-to-image pipelines; {name!r} is none.', 'Leave it out.')
    return DenoiserModel(name)
