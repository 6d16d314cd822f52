"""The network that sees the images, by one text: 'pixels', 'clip:NAME', 'embedded:NAME', 'timm:NAME' or 'inception:FILE'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.curation.class_prompts import ClassPrompts
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.clip_source import model_and_tag
from synthaug_plugins.curation.inception_network import FILES, InceptionNetwork
from synthaug_plugins.curation.timm_network import TimmNetwork
from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.weights import EMBEDDED

if TYPE_CHECKING:
    import torch

PIXELS, CLIP, TIMM, INCEPTION = 'pixels', 'clip:', 'timm:', 'inception:'
HELP = (
    "'pixels', 'clip:NAME' or 'clip:FOLDER' (such as clip:ViT-B-16/openai), 'embedded:digits_clip', 'timm:NAME', 'timm:FOLDER' or 'timm:NAME=WEIGHTS' "
    "(DINO, DINOv2, ResNets), or 'inception:FILE' for FID as papers have it"
)


class FeatureNetwork(ABC):
    """Images to vectors whose distances say how alike they look.

    Attributes:
        text: how the user named it.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot load, before any weights do.

        Raises:
            ModelError: see `ClipModel.check` and `TimmNetwork.check`.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Plain JSON that decides every feature."""

    @abstractmethod
    def setup(self, device: torch.device) -> None:
        """Have the weights on a device."""

    @abstractmethod
    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W, 3) uint8 RGB images, any number but none -> (B, D) float32."""

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse classes that it cannot be told; only a CLIP is told any.

        Raises:
            RecipeError, DataError: see `ClassPrompts.check`.
        """
        return None

    def notes(self) -> Sequence[str]:
        """What a reader must know of it to trust numbers on its features, in sentences."""
        return ()


class Pixels(FeatureNetwork):
    """Pixels themselves, in [0, 1]: a yardstick for images of a few pixels, no more. All images must have one size."""

    most = 3 * 32 * 32
    """Numbers of an image: FID takes the eigenvalues of a matrix of all their pairs, for each line of the table, in a time that grows with their cube."""

    size: tuple[int, ...] | None = None

    def check(self) -> None:
        pass

    def setup(self, device: torch.device) -> None:
        pass

    def identity(self) -> Mapping[str, Any]:
        return {'name': PIXELS}

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        for image in images:
            if image.size > self.most:
                what = f'Images of {image.shape[1]} x {image.shape[0]} pixels are too large to be compared by their pixels.'
                raise DataError(what, 'Use a network: --features clip:RN50/openai.')
            self.size = self.size or image.shape
            if image.shape != self.size:
                sizes = ' and '.join(f'{shape[1]} x {shape[0]}' for shape in (self.size, image.shape))
                raise DataError(f'Images of {sizes} pixels cannot be compared by their pixels.', 'Use a network: --features clip:RN50/openai.')
        return np.stack(images).reshape(len(images), -1).astype(np.float32) / 255


class Clip(FeatureNetwork):
    """Unit vectors of a CLIP's image tower; its text tower is told classes by prompts, by default 'a photo of a {}'.

    Args:
        text: what the user called it.
        name: the CLIP, as `model_and_tag` reads it.
        prompts: options of `ClassPrompts`.
    """

    def __init__(self, text: str, name: str, prompts: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.clip, self._prompts = ClipModel(**model_and_tag(name)), ClassPrompts(**prompts or {})

    def check(self) -> None:
        self.clip.check()

    def identity(self) -> Mapping[str, Any]:
        return self.clip.identity()

    def setup(self, device: torch.device) -> None:
        self.clip.load(device)

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self.clip.encode_images(images).cpu().numpy()

    def check_classes(self, classes: Sequence[str]) -> None:
        self._prompts.check(classes, self.clip)

    def cosines(self, features: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Cosines of images and classes: features (B, D) -> (B, N) float32; a class is the mean of its prompts, see `ClipModel.class_embeddings`."""
        texts = self.clip.class_embeddings(self._prompts.of(classes)).cpu().numpy()
        return features @ texts.T

    def told(self) -> Mapping[str, Any]:
        """What the text tower is told, plain JSON; complete once `check_classes` has seen the classes."""
        return self._prompts.identity()


class Pooled(FeatureNetwork):
    """Pooled features of one of timm's networks, or of the Inception of the Frechet distance.

    Args:
        text: what the user called it.
        network: which.
    """

    def __init__(self, text: str, network: TimmNetwork | InceptionNetwork) -> None:
        super().__init__(text)
        self.network = network

    def check(self) -> None:
        self.network.check()

    def identity(self) -> Mapping[str, Any]:
        return self.network.identity()

    def setup(self, device: torch.device) -> None:
        self.network.setup(device)

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self.network.encode(images)

    def notes(self) -> Sequence[str]:
        if isinstance(self.network, InceptionNetwork) and not self.network.published:
            return (f'{self.text!r} is not the file that published FIDs are made with: its content is another.',)
        return ()


def feature_network(text: str, prompts: Mapping[str, Any] | None = None) -> FeatureNetwork:
    """The network that a text names. Nothing is loaded.

    Args:
        text: see `HELP`.
        prompts: what a CLIP is told of classes, arguments of `ClassPrompts`.

    Raises:
        RecipeError: the text names none, or Inception without its weights.
    """
    if text == PIXELS:
        return Pixels(text)
    if text.startswith(EMBEDDED):
        return Clip(text, text, prompts)
    if text.startswith(CLIP) and text != CLIP:
        return Clip(text, text.removeprefix(CLIP), prompts)
    if text.startswith(INCEPTION) and text != INCEPTION:
        return Pooled(text, InceptionNetwork(text.removeprefix(INCEPTION)))
    if text in (INCEPTION, INCEPTION.rstrip(':')):
        raise RecipeError(f'--features {text!r} names no feature network: it lacks its weight file.', f'Use inception:FILE with {FILES}.')
    if text.startswith(TIMM) and text != TIMM:
        name, _, checkpoint = text.removeprefix(TIMM).partition('=')
        return Pooled(text, TimmNetwork(name, checkpoint or None))
    raise RecipeError(f'--features {text!r} names no feature network.', f'Use {HELP}.')
