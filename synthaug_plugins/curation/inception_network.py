"""The Inception network of the Frechet Inception distance, from the weight file that published figures are made with; never another one in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import ModelError, first_line
from synthaug_plugins.weights import file_hash

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PUBLISHED = '6726825d'
"""How the SHA-256 of the published weights begins; their files say it in their names."""
FILES = 'weights-inception-2015-12-05-6726825d.pth (released by torch-fidelity 0.2.0) or pt_inception-2015-12-05-6726825d.pth (pytorch-fid)'
WIDTH, PIXELS, _CLASSES = 2048, 299, 1008


class InceptionNetwork:
    """Inception-v3 as TensorFlow published it on 2015-12-05: what FID is defined by (Heusel et al. 2017), 2048 pooled features.

    Other Inceptions (torchvision's, timm's) have other weights and other pooling at the borders; distances of their features are no FID that can be
    compared with a paper's. Images are resized as torchmetrics does by default (bilinear, antialiased, to 299 x 299); that step differs between
    implementations, so figures differ from clean-fid's and from the original's by what their resizing does.

    Args:
        weights: the weight file, a pickle of tensors; it is loaded with `weights_only`.

    Raises:
        ModelError: in every method, no such file (see `check`).
    """

    batch_size = 32
    """Images per network call."""

    def __init__(self, weights: str) -> None:
        self.weights = weights
        self._model: nn.Module | None = None
        self._device: torch.device | None = None

    @property
    def published(self) -> bool:
        """Whether the file is the one that published figures are made with."""
        return file_hash(self._file).startswith(PUBLISHED)

    @property
    def _file(self) -> Path:
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise ModelError(f'There are no weights of Inception at {self.weights!r}.', f'Give {FILES}: --features inception:FILE.')
        return path

    def check(self) -> None:
        """Refuse a file that is not there. Weights are not read.

        Raises:
            ModelError: no such file.
        """
        self._file  # noqa: B018  refuses by itself

    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides every feature: the file's name and SHA-256, and how images are resized."""
        return {'name': f'inception:{self._file.name}', 'sha256': file_hash(self._file), 'resize': 'bilinear, antialiased'}

    def setup(self, device: torch.device) -> None:
        """Have the weights on a device, in float32, frozen. A second call for the same device does nothing.

        Raises:
            ModelError: they do not fit in every tensor, or cannot be read.
        """
        import torch

        if self._device == device:
            return
        try:
            state = torch.load(self._file, map_location='cpu', weights_only=True)
            model = _architecture()
            model.load_state_dict(state, assign=True)
        except Exception as error:  # torch and pickle raise many kinds
            raise ModelError(f'{self.weights!r} holds no weights of the Inception of FID: {first_line(error)}.', f'Give {FILES}.') from error
        model.fc = torch.nn.Identity()
        self._model, self._device = model.float().eval().requires_grad_(False).to(device), device

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes, any number but none.

        Returns: (B, 2048) float32.

        Raises:
            ModelError: before `setup`.
        """
        import torch

        from synthaug_plugins.diffusion import full_float32

        if self._model is None:
            raise ModelError(f'The weights {self.weights!r} were not loaded.', 'Call setup(device) first.')
        parts = []
        for i in range(0, len(images), self.batch_size):
            x = torch.cat([_resized(image, self._device) for image in images[i : i + self.batch_size]])
            with torch.inference_mode(), full_float32():
                parts.append(self._model((x - 128) / 128).float().cpu().numpy())
        return np.concatenate(parts)


def _resized(image: np.ndarray, device: torch.device | None) -> Tensor:
    import torch

    x = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(x, size=(PIXELS, PIXELS), mode='bilinear', align_corners=False, antialias=True)


def _architecture() -> Any:
    """torchvision's Inception-v3 with TensorFlow's pooling, on the device meta.

    That is averages which leave padding out, and a maximum in the pooling branch of the last block. The names of its weights are those of the file.
    """
    import torch
    import torch.nn.functional as F
    from torchvision.models.inception import Inception3, InceptionE

    class MaxPooled(InceptionE):
        """With a maximum in its pooling branch."""

        def _forward(self, x: Tensor) -> list[Tensor]:
            *branches, _ = super()._forward(x)
            return [*branches, self.branch_pool(F.max_pool2d(x, kernel_size=3, stride=1, padding=1))]

    with torch.device('meta'):  # no weights are drawn, which would be replaced anyway
        model = Inception3(num_classes=_CLASSES, aux_logits=False, transform_input=False, init_weights=False)
        model.Mixed_7c = MaxPooled(WIDTH)
    for block in ('5b', '5c', '5d', '6b', '6c', '6d', '6e', '7b'):
        getattr(model, f'Mixed_{block}').branch_pool.register_forward_pre_hook(_without_padding)
    return model


def _without_padding(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Make an average over 3 x 3 pixels of which some are padding one over the others alone."""
    import torch.nn.functional as F

    (x,) = inputs
    return x / F.avg_pool2d(x.new_ones(1, 1, *x.shape[2:]), kernel_size=3, stride=1, padding=1)
