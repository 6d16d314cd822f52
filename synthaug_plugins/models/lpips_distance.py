"""LPIPS, the learned perceptual distance, on weights that lie in files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import MissingExtra, ModelError, RecipeError, first_line, nearest
from synthaug_plugins.models.distances import Distance
from synthaug_plugins.registry import DISTANCES
from synthaug_plugins.weights import file_hash

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NETWORKS = {'vgg': 'VGG16_Weights', 'alex': 'AlexNet_Weights', 'squeeze': 'SqueezeNet1_1_Weights'}
"""Networks, and what torchvision calls their weights."""
SMALLEST = 32
"""Pixels; of anything smaller the deepest layers of these networks see nothing."""
_WITHOUT = "or use distance=dict(type='synthaug_plugins.MSE')"


@DISTANCES.register_module()
class LPIPS(Distance):
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), version 0.1 with the linear layers of the `lpips` package.

    The network's own weights are torchvision's IMAGENET1K_V1, which the package does not bring: they are read from `weights`, from torch's cache, or
    fetched into it (not with HF_HUB_OFFLINE=1).

    Args:
        network: 'vgg' (published for the minority score), 'alex' (published for self-guidance; costs far less) or 'squeeze'.
        weights: a file with torchvision's weights of that network: .safetensors, or a pickle that holds tensors only.

    Raises:
        RecipeError: an unknown network; in `check` and when called, images below 32 pixels.
        MissingExtra: in `check`, the package `lpips` is not installed.
        ModelError: in `check` and `setup`, weights that are missing, cannot be read or belong to another network.
    """

    def __init__(self, network: str = 'vgg', weights: str | None = None) -> None:
        if network not in NETWORKS:
            raise RecipeError(f'LPIPS network = {network!r} is unknown.', nearest(str(network), NETWORKS))
        self.network, self.weights = network, weights
        self._model: Any = None

    @cached_property
    def _file(self) -> Path:
        """The network's weights: the file that was named, or torchvision's in torch's cache."""
        if self.weights is not None:
            path = Path(self.weights).expanduser()
            if not path.is_file():
                raise ModelError(f'LPIPS weights = {self.weights!r} does not exist.', f"Give a file with torchvision's weights of the network, {_WITHOUT}.")
            return path
        import torch
        from huggingface_hub import constants

        published = self._published()
        path = Path(torch.hub.get_dir()) / 'checkpoints' / published.url.rpartition('/')[2]
        if path.is_file():
            if not file_hash(path).startswith(path.stem.rpartition('-')[2]):  # torchvision writes the beginning of the hash into the name
                raise ModelError(f'{str(path)!r} is damaged.', 'Remove it, and it is fetched again.')
            return path
        why = 'HF_HUB_OFFLINE=1 forbids to fetch it'
        if not constants.HF_HUB_OFFLINE:
            try:
                published.get_state_dict(progress=False, check_hash=True, weights_only=True)
                return path
            except Exception as error:  # no network, a full disk, a file that was changed on the way
                why = first_line(error)
        cure = f"Fetch torchvision's {path.name} once where there is a network and name it with weights='{path.name}', {_WITHOUT}."
        raise ModelError(f'LPIPS network = {self.network!r}: the weights {path.name} are not in {str(path.parent)!r}, and {why}.', cure)

    def _published(self) -> Any:
        import torchvision

        return getattr(torchvision.models, NETWORKS[self.network]).IMAGENET1K_V1

    def check(self, image_size: tuple[int, int] | None = None) -> None:
        """See `Distance.check`."""
        try:
            import lpips  # noqa: F401
        except ImportError as error:
            raise MissingExtra('lpips', 'metrics', 'The distance LPIPS') from error
        if image_size is not None:
            _check_size(image_size)
        self._file  # noqa: B018  refuses by itself

    def identity(self) -> Mapping[str, Any]:
        """See `Distance.identity`."""
        return {'type': 'LPIPS', 'version': '0.1', 'network': self.network, 'sha256': file_hash(self._file)}

    def setup(self, device: torch.device) -> None:
        """See `Distance.setup`."""
        import lpips
        import torch

        path = self._file
        try:
            if path.suffix == '.safetensors':
                from safetensors.torch import load_file

                found = load_file(path)
            else:
                found = torch.load(path, map_location='cpu', weights_only=True)
            lins = torch.load(Path(lpips.__file__).parent / 'weights' / 'v0.1' / f'{self.network}.pth', map_location='cpu', weights_only=True)
            if not isinstance(found, Mapping):
                raise TypeError(f'it holds a {type(found).__name__}')
        except Exception as error:  # torch, pickle and safetensors raise many kinds
            raise ModelError(f'The weights {str(path)!r} cannot be read: {first_line(error)}.', 'Copy or download the file again.') from error
        with torch.device('meta'), warnings.catch_warnings():  # nothing is drawn at random; torchvision warns of the way in which lpips calls it
            warnings.simplefilter('ignore')
            model = lpips.LPIPS(pretrained=False, net=self.network, pnet_rand=True, verbose=False)
        # torchvision's features.N lie in slices of the same numbers.
        wanted = {name: f'features.{name.partition(".")[2]}' for name in model.net.state_dict()}
        for name, parameter in model.net.state_dict().items():
            there = found.get(wanted[name])
            if not isinstance(there, torch.Tensor) or there.shape != parameter.shape:
                is_ = f'has the shape {tuple(there.shape)}' if isinstance(there, torch.Tensor) else 'is missing'
                what = f'The weights {str(path)!r} are none of LPIPS network = {self.network!r}: {wanted[name]!r} {is_}.'
                raise ModelError(what, f"Give torchvision's {self._published().url.rpartition('/')[2]}.")
        model.to_empty(device='cpu')
        model.scaling_layer = lpips.lpips.ScalingLayer()  # its two constants are no weights
        model.net.load_state_dict({name: found[theirs] for name, theirs in wanted.items()})
        model.lins.load_state_dict({name.removeprefix('lin'): values for name, values in lins.items()})
        self._model = model.float().eval().requires_grad_(False).to(device)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Unit vectors of every place in every layer, of images (B, 1 or 3, H, W)."""
        from synthaug_plugins.diffusion import full_float32

        if self._model is None:
            raise ModelError('The weights of LPIPS were not loaded.', 'Call setup(device) first.')
        _check_size((images.shape[-2], images.shape[-1]))
        with full_float32():
            layers = self._model.net(self._model.scaling_layer(images.float().expand(-1, 3, -1, -1)))
            # Where all features are 0, as after a ReLU, the package's own root has no gradient; the number is the same.
            return [layer / (layer.square().sum(1, keepdim=True).clamp(min=1e-30).sqrt() + 1e-10) for layer in layers]

    def seen_from(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Distance.seen_from`: the network looks at a once."""
        import torch

        from synthaug_plugins.diffusion import full_float32

        of_a = self._features(a)

        def distance(b: Tensor) -> Tensor:
            of_b = self._features(b)
            with full_float32():
                apart = [lin((x - y).square()).mean((1, 2, 3)) for lin, x, y in zip(self._model.lins, of_a, of_b, strict=True)]
            return torch.stack(apart).sum(0)

        return distance

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.seen_from(a)(b)


def _check_size(image_size: tuple[int, int]) -> None:
    if min(image_size) < SMALLEST:
        what = f'LPIPS was asked of images of {image_size[0]} x {image_size[1]} pixels: its networks need {SMALLEST} at least.'
        raise RecipeError(what, "Use distance=dict(type='synthaug_plugins.MSE').")
