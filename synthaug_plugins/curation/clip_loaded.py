"""CLIPs in memory: one per process and device for all inspectors that use it, and one pass per batch of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from synthaug_plugins.curation.clip_source import ClipSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class LoadedClip:
    """A CLIP's network on one device, and what it made of the latest batch.

    Args:
        source: where its files are.
        device: where it goes.

    Attributes:
        model: open_clip's module, in eval mode with frozen parameters.
        device: as given.

    Raises:
        Exception: whatever open_clip, torch and pickle raise.
    """

    def __init__(self, source: ClipSource, device: torch.device) -> None:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        with root_logger_untouched():
            model: Any = open_clip.create_model(
                source.name,
                None if source.folder else str(source.weights),
                device=device,
                force_quick_gelu=bool(source.config.get('quick_gelu')),
                force_preprocess_cfg=None if source.folder else source.preprocess,  # a folder's own open_clip merges itself
                weights_only=True,
                require_pretrained=True,
            )
        self.model, self.device = model.eval().requires_grad_(False), device
        self._config = model.visual.preprocess_cfg
        # Resizing and cropping image by image, as Pillow does it; open_clip's last two steps, to tensor and normalise, are done in batches.
        self._crop = image_transform_v2(PreprocessCfg(**self._config), is_train=False).transforms[:-2]
        self._latest: tuple[list[np.ndarray], Tensor] | None = None

    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H, W, 3) uint8 as the image tower takes them, (B, 3, h, w) float32 on the device; equal to open_clip's own transform."""
        import torch
        from PIL import Image

        def cropped(image: np.ndarray) -> np.ndarray:
            picture: Any = Image.fromarray(image)
            for step in self._crop:
                picture = step(picture)
            return np.asarray(picture)

        pixels = torch.from_numpy(np.stack([cropped(image) for image in images])).to(self.device)
        mean, std = (torch.tensor(self._config[key], device=self.device).view(3, 1, 1) for key in ('mean', 'std'))
        return (pixels.permute(0, 3, 1, 2).float().div(255) - mean) / std

    def once(self, images: Sequence[np.ndarray], encode: Callable[[Sequence[np.ndarray]], Tensor]) -> Tensor:
        """`encode(images)`, remembered for the latest batch.

        A whole batch or nothing: in another batch the last bits of an image's features may differ, and verdicts must not depend on what
        went before. Compared by pixels, of copies: arrays can be written to.
        """
        latest = self._latest  # read once: another thread may replace it
        if latest is None or len(latest[0]) != len(images) or not all(map(np.array_equal, latest[0], images)):
            self._latest = latest = [image.copy() for image in images], encode(images)
        return latest[1]


_LOADED: WeakValueDictionary[tuple[str, str], LoadedClip] = WeakValueDictionary()


def loaded_clip(sha256: str, source: ClipSource, device: torch.device) -> LoadedClip:
    """The CLIP of that content on that device: one that somebody in this process holds already, else read from its files.

    Args:
        sha256: over all that decides its features, see `ClipModel.identity`.

    Raises:
        Exception: see `LoadedClip`.
    """
    key = sha256, str(device)
    found = _LOADED.get(key)
    if found is None:
        found = _LOADED[key] = LoadedClip(source, device)
    return found


@contextmanager
def root_logger_untouched() -> Iterator[None]:
    """open_clip logs through the root logger, which thereby gets a handler that would print other libraries' messages twice."""
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        yield
    finally:
        root.handlers[:] = before
