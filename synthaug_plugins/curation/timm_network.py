"""Image networks of timm as feature extractors: known without their weights, then loaded; images to pooled features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.curation.clip_source import HUB, LOCAL, fetch
from synthaug_plugins.curation.network_input import as_network_sees
from synthaug_plugins.errors import ModelError, first_line, nearest
from synthaug_plugins.weights import file_hash, read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin', 'pytorch_model.pth', 'model.pth')
"""What a folder's weights are called, in the order in which timm looks for them."""


@dataclass(frozen=True)
class _Source:
    """Where a network is: timm's name of it, its weight file, the config of its input, and what records call it."""

    model: str
    label: str
    weights: Path
    input: dict[str, Any]
    config: dict[str, Any]
    classes: int | None
    """Classes of the weights' classifier; None: the file tells."""


class TimmNetwork:
    """A network of timm without its classifier: what its pooling gives, such as DINO's class token or a ResNet's average.

    Args:
        name: one of timm's models with or without a tag, such as 'resnet18.a1_in1k' or 'vit_small_patch14_dinov2.lvd142m' (weights come from the
            Hugging Face hub); 'hf-hub:ORG/NAME'; or a folder in timm's layout (config.json, model.safetensors), with or without 'local-dir:'.
        checkpoint: a weight file for one of timm's architectures (.safetensors, or a pickle that loads with `weights_only`), of any number of classes.

    Raises:
        ModelError: in every method, an unknown or incomplete model (see `check`).
    """

    batch_size = 64
    """Images per network call."""

    def __init__(self, name: str, checkpoint: str | None = None) -> None:
        self.name, self.checkpoint = name, checkpoint
        self._model: torch.nn.Module | None = None
        self._device: torch.device | None = None

    @cached_property
    def _source(self) -> _Source:
        for key, value in (('name', self.name), ('checkpoint', self.checkpoint)):
            if not (isinstance(value, str) or (value is None and key == 'checkpoint')):
                raise ModelError(f'{key} = {value!r} is of the wrong kind.', 'Give text.')
        name, path = self.name, Path(self.name.removeprefix(LOCAL)).expanduser()
        if name.startswith(HUB):
            self._refuse_checkpoint()
            repository, _, revision = name.removeprefix(HUB).partition('@')
            config = fetch(repository, (CONFIG,), revision or None)
            fetch(repository, WEIGHTS[:2], revision or None)
            return self._folder(config.parent, name)  # the snapshot of one commit; weights lie beside the config
        if name.startswith(LOCAL) or (path / CONFIG).is_file() or (path.is_dir() and '/' in name):
            self._refuse_checkpoint()
            return self._folder(path, path.resolve().name)
        if name.startswith(('.', '/', '~')) or '/' in name:
            raise ModelError(f'{name!r}: there is no such folder.', f'Give a folder with {CONFIG} and {WEIGHTS[0]}, or the name of one of timm.')
        return self._architecture()

    def _refuse_checkpoint(self) -> None:
        if self.checkpoint is not None:
            raise ModelError(f'checkpoint = {self.checkpoint!r}, but {self.name!r} brings its own weights.', 'Leave one of them out.')

    def _folder(self, folder: Path, label: str) -> _Source:
        if not (folder / CONFIG).is_file():
            raise ModelError(f'{self.name!r}: {CONFIG} is missing in {str(folder)!r}.', "Give a folder in timm's layout.")
        config = read_json(folder / CONFIG)
        weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        if weights is None:
            raise ModelError(f'{self.name!r}: there are no weights in {str(folder)!r}.', f'timm calls them {WEIGHTS[0]}.')
        if 'architecture' not in config:
            raise ModelError(f'{str(folder / CONFIG)!r} names no architecture.', "It looks like {'architecture': 'resnet18', 'pretrained_cfg': {...}}.")
        _known(config['architecture'])
        own = config.get('pretrained_cfg', config)
        classes = config.get('num_classes', own.get('num_classes'))
        return _Source(f'{LOCAL}{folder}', label, weights, _input(own, self.name), config, classes)

    def _architecture(self) -> _Source:
        import timm

        architecture, _, tag = self.name.partition('.')
        _known(architecture)
        tags = [found.partition('.')[2] for found in timm.list_pretrained(f'{architecture}.*')]
        if tag and tag not in tags:
            raise ModelError(f'{self.name!r}: timm has no weights {tag!r} of this network.', nearest(tag, tags))
        config = timm.get_pretrained_cfg(self.name)
        described = config.to_dict() if config else {}
        known = {'architecture': architecture, **_input(described, self.name)}
        if self.checkpoint is not None:
            weights = Path(self.checkpoint).expanduser()
            if not weights.is_file():
                raise ModelError(f'checkpoint = {self.checkpoint!r} does not exist.', 'Give a weight file.')
            return _Source(self.name, f'{self.name}={weights.name}', weights, _input(described, self.name), known, None)
        if not tags or config is None or not config.hf_hub_id:
            raise ModelError(f'{self.name!r}: timm has no weights of this network on the hub.', 'Give a weight file as checkpoint (timm:NAME=FILE).')
        repository, _, revision = config.hf_hub_id.partition('@')
        weights = fetch(repository, (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS[:2], revision or None)
        return _Source(self.name, f'{architecture}.{tag or config.tag}', weights, _input(described, self.name), known, config.num_classes)

    def check(self) -> None:
        """Refuse what cannot load. Files that are missing here are fetched from the hub; weights are not read, but for their header.

        Raises:
            ModelError: an unknown network or tag, a missing or damaged file, an input that is not of three channels, no network.
        """
        path = self._source.weights
        if path.suffix == '.safetensors':
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, 'pt') as file:
                    file.keys()
            except (SafetensorError, OSError) as error:
                raise ModelError(f'{str(path)!r} cannot be read as safetensors: {error}.', 'Copy or download it again.') from error

    @cached_property
    def _identity(self) -> dict[str, Any]:
        source = self._source
        decides = json.dumps({'config': source.config, 'weights': file_hash(source.weights)}, sort_keys=True, default=str)
        return {'name': source.label, 'sha256': hashlib.sha256(decides.encode()).hexdigest()}

    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides every feature: name, SHA-256 over config and weights.

        Raises:
            ModelError: see `check`.
        """
        return self._identity

    def setup(self, device: torch.device) -> None:
        """Have the weights on a device, in float32, frozen. A second call for the same device does nothing.

        Raises:
            ModelError: they do not fit the architecture in every tensor, or cannot be read.
        """
        import timm
        import torch

        if self._device == device:
            return
        source = self._source
        try:
            if source.weights.suffix != '.safetensors':
                torch.load(source.weights, map_location='cpu', weights_only=True)  # not every timm that we take refuses a pickle that runs code
            classes = self._classes_of_file() if source.classes is None else source.classes
            # With as many classes as the weights have, timm loads strictly; with none, it would leave tensors that are missing at random values.
            overlay = {'file': str(source.weights), 'source': '', 'num_classes': classes}
            if source.model.startswith(LOCAL):
                model = timm.create_model(source.model, pretrained=True, pretrained_cfg_overlay=overlay)
            else:
                model = timm.create_model(source.model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
            model.reset_classifier(0)  # type: ignore[operator]
        except Exception as error:  # timm, torch and pickle raise many kinds
            raise ModelError(
                f'The weights {str(source.weights)!r} do not load into {self.name!r}: {first_line(error)}.',
                'Check that they belong to this architecture; a pickle may hold tensors only.',
            ) from error
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._device = device
        self._mean, self._std = (torch.tensor(source.input[key], device=device).view(3, 1, 1) for key in ('mean', 'std'))

    def _classes_of_file(self) -> int:
        """How many classes a weight file's classifier has: 0 without one."""
        import timm

        config = timm.get_pretrained_cfg(self.name)
        layer = (config.classifier if config else None) or ''
        key = f'{layer if isinstance(layer, str) else layer[0]}.weight'
        weight = timm.models.load_state_dict(str(self._source.weights)).get(key)
        return 0 if weight is None else len(weight)

    @property
    def _loaded(self) -> torch.nn.Module:
        if self._model is None:
            raise ModelError(f'The weights of {self.name!r} were not loaded.', 'Call setup(device) first.')
        return self._model

    def features(self, x: Tensor) -> Tensor:
        """Features of images as tensors, for distances, see `as_network_sees`.

        Args:
            x: (B, 3, H, W) in [-1, 1], on the device of the weights.

        Returns: (B, D) float32; differentiable in x.
        """
        from synthaug_plugins.diffusion import full_float32

        model = self._loaded
        with full_float32():
            return model(as_network_sees(x, self._source.input['input_size'][1:], self._mean, self._std)).float()

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images as files hold them, by timm's own transform for evaluation: resized, cropped, normalised.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes, any number.

        Returns: (B, D) float32.

        Raises:
            ModelError: not finite.
        """
        import timm
        import torch
        from PIL import Image

        from synthaug_plugins.diffusion import full_float32

        model = self._loaded
        device = next(model.parameters()).device
        transform: Any = timm.data.create_transform(**self._source.input, is_training=False)
        parts = []
        for i in range(0, len(images), self.batch_size):
            x = torch.stack([transform(Image.fromarray(image)) for image in images[i : i + self.batch_size]]).to(device)
            with torch.inference_mode(), full_float32():
                parts.append(model(x).float().cpu().numpy())
        found = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        if not np.isfinite(found).all():
            raise ModelError(f'{self.name!r} gives features that are not finite.', 'Check its weights.')
        return found


def _known(architecture: str) -> None:
    """Refuse (ModelError) a name that timm does not have."""
    import timm

    if not timm.is_model(architecture):
        raise ModelError(f'{architecture!r} is none of the networks of timm.', nearest(architecture, timm.list_models(), 5))


def _input(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """timm's options of a network's input: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode."""
    import timm

    found: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=dict(config))
    if found['input_size'][0] != 3:
        raise ModelError(f'{name!r} takes images of {found["input_size"][0]} channels.', 'Give a network for RGB images.')
    return found
