"""What the published U-Nets for diffusion are made of: residual blocks, self-attention, resampling."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug_plugins.errors import ModelError

Direction = Literal['down', 'up']


@dataclass(frozen=True)
class BlockStyle:
    """In what the residual blocks of DDPM++ and ADM differ.

    Attributes:
        eps: of the group norms.
        skip_scale: factor on every sum of a branch and its shortcut; sqrt(1/2) keeps the variance.
        scale_shift: the embedding scales and shifts after the second norm (ADM); else it is added before it (DDPM++).
        resample_conv: a block that resamples has a 1x1 convolution in its shortcut, even where the widths agree.
        head_channels: channels of an attention head; 0 for a single head.
        attend_all: every decoder block of an attention resolution attends; else the last one of its level does.
        resample_filter: taps per axis, (1, 1) for the box or (1, 3, 3, 1).
        dropout: share of activations dropped before the second convolution.
    """

    eps: float
    skip_scale: float
    scale_shift: bool
    resample_conv: bool
    head_channels: int
    attend_all: bool
    resample_filter: tuple[int, ...] = (1, 1)
    dropout: float = 0.0


class GroupNorm(nn.GroupNorm):
    """Keeps the dtype of its input under autocast, which would make float32 of it, and with it of all up to the next convolution: twice the
    memory traffic where that is most of the time. Mean and variance are float32 at any precision."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        known = torch.amp.is_autocast_available(x.device.type)  # the meta device has none
        with torch.autocast(x.device.type, enabled=False) if known else nullcontext():
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """At most 32 groups of at least 4 channels each; the next smaller number of groups where that does not divide."""
    groups = next(g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels, eps=eps)


def noise_angles(c_noise: Tensor, frequencies: Tensor) -> Tensor:
    """c_noise (B,) times each frequency (n,): (B, n) in float32, since bfloat16 would merge noise levels that lie within 0.4 %."""
    return c_noise.float()[:, None] * frequencies.float()


def positional_frequencies(n: int, device: torch.device, last: bool) -> Tensor:
    """n frequencies falling geometrically from 1 towards 1/10000 (Vaswani et al. 2017); `last`: 1/10000 is the last one. (n,) float32."""
    return 10000.0 ** (-torch.arange(n, dtype=torch.float32, device=device) / (n - 1 if last else n))


class Resample(nn.Module):
    """Halve or double height and width with a separable filter (zeros outside of the image, none for the box).

    Args:
        direction: 'down' or 'up'.
        taps: of the filter, per axis.
        pad: False leaves the border of a 'down' filter unpadded; the caller has padded.
    """

    def __init__(self, direction: Direction, taps: tuple[int, ...], pad: bool = True) -> None:
        super().__init__()
        self.direction, self.box = direction, taps == (1, 1)
        self.padding = (len(taps) - 1) // 2 if pad else 0
        if not self.box:
            row = torch.tensor(taps, dtype=torch.float32) / sum(taps)
            self.register_buffer('kernel', torch.outer(row, row)[None, None] * (4 if direction == 'up' else 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2) or (B, C, 2H, 2W)."""
        if self.box:
            return F.avg_pool2d(x, 2) if self.direction == 'down' else F.interpolate(x, scale_factor=2, mode='nearest')
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)  # type: ignore[operator]
        convolve = F.conv2d if self.direction == 'down' else F.conv_transpose2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input. The kernels behind it keep the softmax in float32 at any precision.

    Args:
        channels: C.
        style: says channels per head, eps and skip_scale.

    Raises:
        ModelError: the channels cannot be split into heads.
    """

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.heads = max(channels // style.head_channels, 1) if style.head_channels else 1
        if channels % self.heads:
            raise ModelError(f'{channels} channels cannot be split into {self.heads} attention heads.', 'Choose channels as a multiple of head_channels.')
        self.skip_scale = style.skip_scale
        self.norm = group_norm(channels, style.eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        a = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        return (x + self.project(a)) * self.skip_scale


class ResidualBlock(nn.Module):
    """norm, SiLU, (resample,) 3x3 convolution, embedding, norm, SiLU, dropout, 3x3 convolution; then attention where asked for.

    Args:
        c_in, c_out: channels.
        embedding: E, length of what the block is told of noise and class.
        style: see `BlockStyle`.
        resample: 'down' or 'up' halves or doubles height and width; None keeps them.
        attend: whether attention follows.

    Raises:
        ModelError: see `Attention`.
    """

    def __init__(self, c_in: int, c_out: int, embedding: int, style: BlockStyle, resample: Direction | None = None, attend: bool = False) -> None:
        super().__init__()
        self.style = style
        self.norm0 = group_norm(c_in, style.eps)
        self.resample = Resample(resample, style.resample_filter) if resample else nn.Identity()
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * c_out if style.scale_shift else c_out)
        self.norm1 = group_norm(c_out, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out or (resample and style.resample_conv) else nn.Identity()
        self.attention = Attention(c_out, style) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, c_in, H, W); embedding (B, E). Returns (B, c_out, H', W')."""
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        m = self.modulate(embedding)[:, :, None, None]
        if self.style.scale_shift:
            scale, shift = m.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + m)
        h = self.conv1(self.dropout(F.silu(h)))
        return self.attention((self.skip(self.resample(x)) + h) * self.style.skip_scale)
