"""Non-leaking augmentation of training images (Karras et al. 2022, arXiv 2206.00364, Section 5 and appendix F).

Clean images are changed before the noise comes, and the network is told how: it learns the images as they are, and from few
of them. At inference nobody tells it anything, and it makes images as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from synthaug_plugins.diffusion.warp import constant, warp
from synthaug_plugins.errors import RecipeError

Draws = Mapping[str, tuple[Tensor, ...]]

# Per transform, in order of execution: its label dimensions and its random draws; values first, then whether it acts.
_TRANSFORMS: dict[str, tuple[int, tuple[str, ...]]] = {
    'xflip': (1, ('bit', 'uniform')),
    'yflip': (1, ('bit', 'uniform')),
    'rotate_int': (2, ('quarter', 'uniform')),
    'translate_int': (2, ('uniform pair', 'uniform')),
    'scale': (1, ('normal', 'uniform')),
    'rotate_frac': (2, ('uniform', 'uniform')),
    'aniso': (2, ('normal', 'uniform', 'uniform', 'uniform')),
    'translate_frac': (2, ('normal pair', 'uniform')),
    'brightness': (1, ('normal', 'uniform')),
    'contrast': (1, ('normal', 'uniform')),
    'lumaflip': (1, ('bit', 'uniform')),
    'hue': (2, ('uniform', 'uniform')),
    'saturation': (1, ('normal', 'uniform')),
}
_WARPS = ('scale', 'rotate_frac', 'aniso', 'translate_frac')
_COLOURS = ('brightness', 'contrast', 'lumaflip', 'hue', 'saturation')


@dataclass(frozen=True)
class Augmentation:
    """Random changes of images, and the labels that tell a network of them.

    Each transform acts on an image with probability min(1, multiplier * p), independently; where it does not, its labels are 0.
    A transform whose multiplier is 0 is off and has no labels. p = 0 switches all off but keeps the labels, all zero. EDM's
    training uses the defaults, with p = 0.12 for CIFAR-10 and 0.15 for FFHQ and AFHQv2.

    Attributes:
        p: probability, [0, 1].
        xflip, yflip: mirror left-right and up-down, in half of the images on which they act. xflip acts on all (1e8 * p).
        scale: by 2^(0.2 w), w normal.
        rotate_frac: by any angle.
        aniso: stretch one direction by 2^(0.2 w), w normal, and shrink the other; along the axes or, in half of the cases, along any.
        translate_frac: by a normal share of height and width, standard deviation 0.125, at fractions of a pixel.
        rotate_int: by quarter turns; square images only.
        translate_int: by up to 0.125 of height and width, whole pixels.
        brightness: plus 0.2 w, w normal.
        contrast: times 2^(0.5 w), w normal.
        lumaflip: mirror the luma, in half of the images.
        hue: turn by any angle around the luma axis.
        saturation: chroma times 2^w, w normal.

    Raises:
        RecipeError: p outside of [0, 1], or a negative multiplier.
    """

    p: float = 0.12
    xflip: float = 1e8
    yflip: float = 1
    scale: float = 1
    rotate_frac: float = 1
    aniso: float = 1
    translate_frac: float = 1
    rotate_int: float = 0
    translate_int: float = 0
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise RecipeError(f'augment p = {self.p!r} is outside of [0, 1].', 'EDM uses 0.12 to 0.15.')
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise RecipeError(f'augment {field.name} = {getattr(self, field.name)!r} is negative.', 'Use 0 for off, 1 for probability p.')

    @property
    def transforms(self) -> list[str]:
        """Names of the transforms that are on, in order of execution and of the labels."""
        return [name for name in _TRANSFORMS if getattr(self, name) > 0]

    @property
    def label_dim(self) -> int:
        """Numbers per image that tell of its changes."""
        return sum(_TRANSFORMS[name][0] for name in self.transforms)

    def draw(self, batch_size: int, device: torch.device | str = 'cpu') -> dict[str, tuple[Tensor, ...]]:
        """Random numbers for a batch, from torch's global generator of the device.

        Returns: per transform its draws, each (B,) or, for both axes of a translation, (2, B): values first, then the uniform
        number that decides whether it acts (aniso has one more, which decides whether it is turned). All are drawn whether or
        not the transform acts. The batch is the last axis of each, so that they can be split like the images.
        """

        def one(what: str) -> Tensor:
            kind, *pair = what.split()
            shape = (2, batch_size) if pair else (batch_size,)
            if kind in ('bit', 'quarter'):
                return torch.randint(2 if kind == 'bit' else 4, shape, device=device)
            return (torch.rand if kind == 'uniform' else torch.randn)(shape, device=device)

        return {name: tuple(one(what) for what in _TRANSFORMS[name][1]) for name in self.transforms}

    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Change a batch of images.

        Args:
            images: (B, C, H, W) floating point, about [-1, 1], H and W 2 or more.
            draws: see `draw`.

        Returns: images like the given ones, not clamped, and labels (B, label_dim) float32.

        Raises:
            RecipeError: transforms that these images cannot have.
        """
        self._check_images(images, self.transforms)
        # Autocast would run the products of matrices in half precision.
        with torch.autocast(images.device.type, enabled=False):
            return self._changed(images, draws)

    def _changed(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        on = self.transforms
        values = {name: self._gated(name, draws[name]) for name in on}
        labels: list[Tensor] = []
        for name in on:
            if name in (*_WARPS, *_COLOURS):
                labels += _told(name, *values[name])
            else:
                images, told = _move_pixels(name, values[name][0], images)
                labels += told
        if any(name in _WARPS for name in on):
            images = warp(images, _inverse(values, images))
        if any(name in _COLOURS for name in on):
            images = _recolour(values, images)
        return images, torch.stack(labels, dim=1).float() if labels else images.new_zeros(len(images), 0, dtype=torch.float32)

    def _check_images(self, images: Tensor, on: list[str]) -> None:
        if not images.is_floating_point() or min(images.shape[2:]) < 2:
            raise RecipeError(f'augment got images of {images.dtype} and {tuple(images.shape)}.', 'It takes float images, 2 pixels wide and high at least.')
        if 'rotate_int' in on and images.shape[2] != images.shape[3]:
            raise RecipeError(f'augment rotate_int cannot turn images of {images.shape[2]} x {images.shape[3]} pixels.', 'Set rotate_int = 0.')
        colours = [name for name in on if name in _COLOURS]
        if colours and images.shape[1] not in (1, 3):
            raise RecipeError(f'augment {colours[0]} cannot change images of {images.shape[1]} channels.', f'Set {colours[0]} = 0, or use 1 or 3 channels.')

    def _gated(self, name: str, draws: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The values of a transform, 0 for images on which it does not act."""
        value = draws[0]
        if name == 'translate_int':
            value = 2 * value - 1
        elif name in ('rotate_frac', 'hue'):
            value = math.pi * (2 * value - 1)
        if name == 'aniso':
            strength, angle, gate, turned = draws
            r = torch.where(turned < 0.5, math.pi * (2 * angle - 1), 0.0)
            return torch.where(gate < self.aniso * self.p, strength, 0.0), r
        return (torch.where(draws[-1] < getattr(self, name) * self.p, value, torch.zeros_like(value)),)


def _told(name: str, w: Tensor, r: Tensor | None = None) -> list[Tensor]:
    """Labels of a warp or a change of colour, each (B,)."""
    if name in ('rotate_frac', 'hue'):
        return [w.cos() - 1, w.sin()]
    if r is not None:
        return [w * r.cos(), w * r.sin()]
    return [w[0], w[1]] if w.ndim == 2 else [w]


def _move_pixels(name: str, w: Tensor, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Transforms that only move whole pixels: the images and the labels."""

    def where(condition: Tensor, moved: Tensor) -> Tensor:
        return torch.where(condition[:, None, None, None], moved, images)

    if name == 'xflip':
        return where(w == 1, images.flip(3)), [w]
    if name == 'yflip':
        return where(w == 1, images.flip(2)), [w]
    if name == 'rotate_int':
        mirrored, upside_down = (w == 1) | (w == 2), (w == 2) | (w == 3)
        images = where(mirrored, images.flip(3))
        images = where(upside_down, images.flip(2))
        return where((w == 1) | (w == 3), images.transpose(2, 3)), [mirrored, upside_down]
    told = []
    # Rows are counted downwards, shifts upwards.
    for axis, share in ((3, w[0]), (2, -w[1])):
        size = images.shape[axis]
        shift = (share * size * 0.125).round().long()
        # The image goes on beyond its border as its reflection.
        place = size - 1 - (size - 1 - (torch.arange(size, device=images.device) - shift[:, None]) % (2 * size - 2)).abs()
        place = place[:, None, None, :] if axis == 3 else place[:, None, :, None]
        images = images.gather(axis, place.expand(images.shape))
        told.append((shift if axis == 3 else -shift) / (size * 0.125))
    return images, told


def _inverse(values: Mapping[str, tuple[Tensor, ...]], images: Tensor) -> Tensor:
    """All warps as one map from places in the result to places in the image: (B, 3, 3), see `warp`."""
    G = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    if 'scale' in values:
        s = (0.2 * values['scale'][0]).exp2()
        G = G @ _scaling(1 / s, 1 / s)
    if 'rotate_frac' in values:
        G = G @ _rotation(values['rotate_frac'][0])
    if 'aniso' in values:
        w, r = values['aniso']
        s = (0.2 * w).exp2()
        G = G @ _rotation(-r) @ _scaling(1 / s, s) @ _rotation(r)
    if 'translate_frac' in values:
        wx, wy = values['translate_frac'][0]
        one, zero = torch.ones_like(wx), torch.zeros_like(wx)
        G = G @ _matrix([[one, zero, -0.125 * images.shape[3] * wx], [zero, one, -0.125 * images.shape[2] * wy], [zero, zero, one]])
    return G


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=-1))


def _rotation(angle: Tensor) -> Tensor:
    c, s, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, torch.ones_like(c)]])


def _recolour(values: Mapping[str, tuple[Tensor, ...]], images: Tensor) -> Tensor:
    """All changes of colour as one affine map of RGB: a matrix (B, 3, 3) and an offset (B, 3). Grey images get the mean over its rows."""
    matrix = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    offset = torch.zeros(len(images), 3, device=images.device)
    luma = torch.full((3, 3), 1 / 3, device=images.device)  # projects onto the grey axis
    w = {name: v[0].float()[:, None] for name, v in values.items() if name in _COLOURS}
    if 'brightness' in w:
        offset = offset + 0.2 * w['brightness']
    if 'contrast' in w:
        factor = (0.5 * w['contrast']).exp2()
        matrix, offset = factor[..., None] * matrix, factor * offset
    for name in ('lumaflip', 'hue', 'saturation'):
        if name in w:
            v = w[name][..., None]
            if name == 'lumaflip':
                turn = torch.eye(3, device=v.device) - 2 * v * luma
            elif name == 'hue':
                # Rodrigues: cos(v) I + sin(v) [axis]x + (1 - cos(v)) axis axis^T, axis = (1, 1, 1) / sqrt(3).
                cross = constant(((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0)), v.dtype, v.device) / math.sqrt(3)
                turn = v.cos() * torch.eye(3, device=v.device) + v.sin() * cross + (1 - v.cos()) * luma
            else:
                turn = luma + (torch.eye(3, device=v.device) - luma) * v.exp2()
            matrix, offset = turn @ matrix, (turn @ offset[..., None])[..., 0]
    if images.shape[1] == 1:
        matrix, offset = matrix.mean(1, keepdim=True).sum(2, keepdim=True), offset.mean(1, keepdim=True)
    return (matrix.to(images) @ images.flatten(2) + offset.to(images)[..., None]).reshape(images.shape)
