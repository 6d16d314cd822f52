"""A small U-Net for small images: residual blocks, self-attention at low resolution, classes with a null row."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels each."""
    return math.gcd(channels, 32) if channels >= 128 else math.gcd(channels, max(channels // 4, 1))


def _zero(module: nn.Module) -> nn.Module:
    """Start a layer at zero, so that its branch begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts between them."""

    def __init__(self, c_in: int, c_out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm0 = nn.GroupNorm(_groups(c_in), c_in)
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * c_out)
        self.norm1 = nn.GroupNorm(_groups(c_out), c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv1(self.dropout(h))


class _Attention(nn.Module):
    """Self-attention over the pixels."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(channels // head_channels, 1)
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        a = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(a.transpose(-1, -2).reshape(b, c, h, w))


class UNet(nn.Module):
    """The raw network F(x; c_noise, labels) of an EDM denoiser.

    Args:
        resolution: height and width of the images, divisible by 2 per level below the first.
        image_channels: of input and output.
        num_classes: 0 for an unconditional network. The class table has one row more: index `num_classes` is the null
            label, used for `labels=None` and for label dropout in training.
        channels: of the first level.
        channel_mult: one factor per level; each level halves the resolution of the one before.
        blocks_per_level: residual blocks per level, in the encoder and in the decoder.
        attention_resolutions: resolutions whose blocks are followed by self-attention; the middle always has it.
        head_channels: channels per attention head.
        embedding_channels: of the noise and class embedding.
        dropout: within residual blocks.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        num_classes: int = 0,
        *,
        channels: int = 48,
        channel_mult: tuple[int, ...] = (1, 2),
        blocks_per_level: int = 2,
        attention_resolutions: tuple[int, ...] = (),
        head_channels: int = 32,
        embedding_channels: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Fixed geometric frequencies: c_noise = ln(sigma)/4 lies in about [-1.6, 1.1].
        self.register_buffer('frequencies', torch.logspace(-2, 4, 16, base=2), persistent=False)
        self.embed = nn.Sequential(nn.Linear(32, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels))
        self.classes = nn.Embedding(num_classes + 1, embedding_channels) if num_classes else None

        def block(c_in: int, c_out: int, size: int) -> nn.ModuleList:
            layers: list[nn.Module] = [_ResidualBlock(c_in, c_out, embedding_channels, dropout)]
            if size in attention_resolutions:
                layers.append(_Attention(c_out, head_channels))
            return nn.ModuleList(layers)

        self.first = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        widths, c, size = [], channels, resolution
        for factor in channel_mult:
            level = nn.ModuleList()
            for _ in range(blocks_per_level):
                level.append(block(c, channels * factor, size))
                c = channels * factor
                widths.append(c)
            self.encoder.append(level)
            size //= 2
        self.middle = nn.ModuleList(
            [
                _ResidualBlock(c, c, embedding_channels, dropout),
                _Attention(c, head_channels),
                _ResidualBlock(c, c, embedding_channels, dropout),
            ]
        )
        for factor in reversed(channel_mult):
            size *= 2
            level = nn.ModuleList()
            for _ in range(blocks_per_level):
                level.append(block(c + widths.pop(), channels * factor, size))
                c = channels * factor
            self.decoder.append(level)
        self.last_norm = nn.GroupNorm(_groups(c), c)
        self.last = _zero(nn.Conv2d(c, image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Args: x (B, C, H, W); c_noise (B,); labels (B,) int64 or None. Returns (B, C, H, W)."""
        # In float32: bfloat16 would merge noise levels that lie within 0.4 %.
        angles = 2 * math.pi * c_noise.float()[:, None] * self.frequencies.float()  # type: ignore[operator]
        e = self.embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype))
        if self.classes is not None:
            e = e + self.classes(torch.full((len(x),), self.num_classes, device=x.device) if labels is None else labels)
        elif labels is not None:
            raise ValueError('labels were given to an unconditional network')
        e = F.silu(e)

        h, skips = self.first(x), []
        for depth, level in enumerate(self.encoder):
            h = F.avg_pool2d(h, 2) if depth else h
            for layers in level:  # type: ignore[attr-defined]
                h = self._run(layers, h, e)
                skips.append(h)
        h = self._run(self.middle, h, e)
        for depth, level in enumerate(self.decoder):
            h = F.interpolate(h, scale_factor=2, mode='nearest') if depth else h
            for layers in level:  # type: ignore[attr-defined]
                h = self._run(layers, torch.cat([h, skips.pop()], dim=1), e)
        return self.last(F.silu(self.last_norm(h)))

    @staticmethod
    def _run(layers: nn.ModuleList, h: Tensor, e: Tensor) -> Tensor:
        for layer in layers:
            h = layer(h, e) if isinstance(layer, _ResidualBlock) else layer(h)
        return h
