"""A CLIP through open_clip: known without its weights, then loaded; images and texts to unit vectors."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.curation.clip_loaded import LoadedClip, loaded_clip, root_logger_untouched
from synthaug_plugins.curation.clip_source import ClipSource, find_clip
from synthaug_plugins.curation.network_input import as_network_sees
from synthaug_plugins.errors import ModelError, first_line
from synthaug_plugins.weights import file_hash

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ClipModel:
    """An image tower and a text tower that meet in one space (Radford et al. 2021), or any other model of open_clip.

    Args:
        model: 'embedded:digits_clip'; a folder in open_clip's layout (open_clip_config.json, weights, tokenizer files if it has its own), with
            or without 'local-dir:'; 'hf-hub:ORG/NAME'; or one of open_clip's architectures, such as 'RN50' or 'ViT-B-16'.
        pretrained: for an architecture alone: one of its tags (open_clip fetches from the Hugging Face hub), or a weight file (.safetensors, or
            a pickle that loads with `weights_only`). Default: 'openai' where the architecture has it.
        revision: commit or tag of the hub's repository; default: its main branch.
        quick_gelu: whether the weights were trained with OpenAI's approximate GELU. A tag and a folder say it themselves. For a weight file of
            an architecture that exists in both kinds it must be said: nothing in the file tells, and the wrong one costs accuracy in silence.

    Attributes:
        name: as given, with the tag or file.
        model: open_clip's module, in eval mode with frozen parameters, once loaded; shared by all who loaded the same CLIP onto the same device.
        tokenizer: texts -> (n, context) token ids.

    Raises:
        ModelError: in every method, an unknown or incomplete model (see `check`).
    """

    batch_size = 64
    """Images or texts per network call."""

    def __init__(self, model: str, pretrained: str | None = None, revision: str | None = None, quick_gelu: bool | None = None) -> None:
        self._named = (model, pretrained, revision, quick_gelu)
        self.name = f'{model}/{pretrained}' if pretrained else model
        self.model: torch.nn.Module | None = None
        self._in_memory: LoadedClip | None = None

    @cached_property
    def _source(self) -> ClipSource:
        return find_clip(*self._named)

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of the model.

        Raises:
            ModelError: its files are missing, or cannot be fetched.
        """
        import open_clip

        source = self._source
        text = source.config['text_cfg']
        # A config can ask for any option of transformers' tokenizers; code that comes with one is never run.
        safe = {'trust_remote_code': False} if text.get('hf_tokenizer_name') else {}
        try:
            if source.hub_tokenizer:
                length = text.get('context_length', open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
                options = {'tokenizer_mode': text.get('tokenizer_mode'), **text.get('tokenizer_kwargs', {}), **safe}
                tokenizer = open_clip.tokenizer.HFTokenizer(source.hub_tokenizer, context_length=length, **options)
            else:
                with root_logger_untouched():
                    tokenizer = open_clip.get_tokenizer(source.name, **safe)
        except Exception as error:  # transformers and the hub raise many kinds
            raise ModelError(f'The tokenizer of {self.name!r} cannot be read: {first_line(error)}.', 'Put its files into the model folder.') from error
        own = getattr(tokenizer, 'tokenizer', None)
        # Without this file transformers reads the tokens all the same, but not what each is for, and fails at the first batch.
        if own is not None and own.pad_token is None:
            cure = 'Put its tokenizer_config.json, which names one, into the model folder (tokenizer.save_pretrained(folder)).'
            raise ModelError(f'The tokenizer of {self.name!r} has no padding token.', cure)
        return tokenizer

    @property
    def embed_dim(self) -> int:
        """Length d of its vectors. Needs no weights."""
        return int(self._source.config['embed_dim'])

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        """open_clip's options of its image preprocessing: size (px), mean, std, interpolation, resize_mode. Needs no weights."""
        from dataclasses import asdict

        from open_clip.transform import PreprocessCfg

        own = {key: value for key, value in self._source.preprocess.items() if value is not None}
        return {**asdict(PreprocessCfg()), **own, 'size': self._source.config['vision_cfg'].get('image_size', 224)}

    @property
    def has_batch_norm(self) -> bool:
        """Whether its image tower may hold BatchNorm layers: open_clip's ResNets do, of timm's towers nothing is known without building them."""
        tower = self._source.config['vision_cfg']
        return bool(tower.get('timm_model_name')) or not isinstance(tower.get('layers', 12), int)

    def check(self) -> None:
        """Refuse what cannot load. Files that are missing here are fetched from the hub; weights are not read, but for their header.

        Raises:
            ModelError: an unknown architecture or tag, a missing or truncated file, a pickle that holds code, no network.
        """
        path = self._source.weights
        if path.suffix == '.safetensors':
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, 'pt') as file:
                    file.keys()
            except (SafetensorError, OSError) as error:
                raise ModelError(f'{str(path)!r} cannot be read as safetensors: {error}.', 'Copy or download it again.') from error
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any('/code/' in name for name in archive.namelist()):
                    raise ModelError(
                        f'{str(path)!r} is a TorchScript archive, whose code would run on loading.', "Use pretrained='openai', or save its state dict."
                    )
        self.tokenizer  # noqa: B018  refuses by itself

    @cached_property
    def _identity(self) -> dict[str, Any]:
        source = self._source
        decides = {'config': source.config, 'preprocess': source.preprocess, 'weights': file_hash(source.weights), 'tokenizer': self._tokenizer_content()}
        content = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return {'name': source.label, 'sha256': content, 'licence': source.licence, 'revision': self._named[2]}

    def _tokenizer_content(self) -> Any:
        """What decides token ids, where it is not open_clip's own vocabulary."""
        files = self._source.tokenizer_files
        if files:
            return {path.name: file_hash(path) for path in files}
        own = getattr(self.tokenizer, 'tokenizer', None)
        return sorted(own.get_vocab().items()) if own is not None else None

    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides every feature: name, SHA-256 over config, preprocessing, tokenizer and weights; licence if its card says.

        Raises:
            ModelError: see `check`.
        """
        return self._identity

    def load(self, device: torch.device) -> None:
        """Have the weights on a device, in float32; they are read unless somebody in this process has them there already.

        Raises:
            ModelError: they do not fit the architecture, or cannot be read.
        """
        source, content = self._source, str(self._identity['sha256'])
        try:
            self._in_memory = loaded_clip(content, source, device)
        except Exception as error:  # open_clip, torch and pickle raise many kinds
            raise ModelError(
                f'The weights {str(source.weights)!r} do not load into {self.name!r}: {first_line(error)}.',
                'Check that they belong to this architecture; a pickle may hold tensors only.',
            ) from error
        self.model = self._in_memory.model

    @property
    def _loaded(self) -> LoadedClip:
        if self._in_memory is None:
            raise ModelError(f'The weights of {self.name!r} were not loaded.', 'Call load(device) first.')
        return self._in_memory

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._loaded.device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by to become logits (about 100)."""
        return float(self._loaded.model.logit_scale.exp())

    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images as the image tower takes them; equal to open_clip's own transform.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.

        Returns: (B, 3, h, w) float32 on the model's device.
        """
        return self._loaded.preprocess(images)

    def encode_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Unit vectors of images. Inspectors ask `batch_features`.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes, any number.

        Returns: (B, d) float32 on the model's device.

        Raises:
            ModelError: not finite.
        """
        return self._encoded(images, lambda part: self._loaded.model.encode_image(self.preprocess(part)))

    def features(self, x: Tensor) -> Tensor:
        """Features of images as tensors, for distances, see `as_network_sees`.

        Args:
            x: (B, 3, H, W) in [-1, 1], on the model's device.

        Returns: (B, d) float32, of any length; differentiable in x.
        """
        import torch

        from synthaug_plugins.diffusion import full_float32

        config = self.preprocess_cfg
        size = (config['size'],) * 2 if isinstance(config['size'], int) else tuple(config['size'])
        mean, std = (torch.tensor(config[key], device=x.device).view(3, 1, 1) for key in ('mean', 'std'))
        with full_float32():
            return self._loaded.model.encode_image(as_network_sees(x, size, mean, std)).float()

    def batch_features(self, images: Sequence[np.ndarray]) -> Tensor:
        """`encode_images` of a batch that several inspectors look at: the second who asks for the same pixels gets what the first got."""
        return self._loaded.once(images, self.encode_images)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts. What is longer than the text tower's context is cut by the tokenizer: ask `excess_tokens` before.

        Returns: (n, d) float32 on the model's device.

        Raises:
            ModelError: not finite.
        """
        return self._encoded(texts, lambda part: self._loaded.model.encode_text(self.tokenizer(list(part)).to(self.device)))

    def _encoded(self, items: Sequence[Any], encode: Any) -> Tensor:
        import torch

        from synthaug_plugins.diffusion import full_float32

        with torch.no_grad(), full_float32():
            parts = [encode(items[i : i + self.batch_size]).float() for i in range(0, len(items), self.batch_size)]
            features = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
        if not bool(features.isfinite().all()):
            raise ModelError(f'{self.name!r} gives features that are not finite.', 'Its weights are damaged, or of another architecture.')
        return features

    def class_embeddings(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """One unit vector per class: the normalised mean of its prompts' unit vectors (Radford et al. 2021, section 3.1.4).

        Args:
            prompts: of each class, at least one.

        Returns: (N, d) float32 on the model's device.
        """
        import torch

        unique = list(dict.fromkeys(text for texts in prompts for text in texts))
        place = {text: i for i, text in enumerate(unique)}
        features = self.encode_texts(unique)
        means = torch.stack([features[[place[text] for text in texts]].mean(0) for texts in prompts])
        return torch.nn.functional.normalize(means, dim=-1)

    def excess_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text the text tower would not see; 0 where it fits. Needs no weights."""
        tokenizer = self.tokenizer
        own = getattr(tokenizer, 'tokenizer', None)
        # One call for all: what transformers does around each call takes longer than the tokens of a prompt.
        lengths = map(len, own(list(texts), verbose=False)['input_ids']) if own is not None else (len(tokenizer.encode(text)) + 2 for text in texts)
        return [max(0, length - tokenizer.context_length) for length in lengths]
