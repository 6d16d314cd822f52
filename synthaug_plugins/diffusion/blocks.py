"""What the published U-Nets for diffusion share: residual blocks, self-attention, resampling, the encoder and the decoder."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    """Self-attention over the pixels, added to its input. The kernels behind it keep the softmax in float32 at any precision."""

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
    """norm, SiLU, (resample,) 3x3 convolution, embedding, norm, SiLU, dropout, 3x3 convolution; then attention where asked for."""

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


class EncoderDecoder(nn.Module):
    """The U-Net itself, without its embeddings: `decode(x, e)`; and the checks and label vectors that both networks need.

    Where a network takes class labels it also takes, conditional or not, label vectors (B, `label_width`) of any floating type: one stands in the
    place of a class's own, which `label_vector` says.

    Args:
        resolution: height and width of the images, divisible by 2 per level below the first.
        image_channels, output_channels: of x and of the result.
        num_classes, augment_labels: what `forward` of the network accepts; 0 for none.
        style: of the blocks.
        channels: a level's width is `channels` times its entry in channel_mult.
        widen_first: the first convolution has the width of the first level (ADM), not `channels` (DDPM++).
        channel_mult: one factor per level; each level halves the resolution of the one before.
        blocks_per_level: residual blocks per encoder level; a decoder level has one more.
        attention_resolutions: resolutions whose blocks attend; the middle always does.
        pyramid: add the downsampled image, passed through convolutions, to the encoder at every level (NCSN++).
        checkpoint: in training, keep only the blocks' inputs and run every block again in the backward pass; equal gradients,
            less memory, about a third more time.

    Raises:
        ModelError: a value that makes no network, with its key.
    """

    label_width: int
    """Length of a label vector."""
    label_scale: float = 1.0
    """What a class's one-hot row is multiplied by before its linear layer."""
    embed_label: nn.Linear | None

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        output_channels: int,
        num_classes: int,
        augment_labels: int,
        style: BlockStyle,
        *,
        channels: int,
        widen_first: bool,
        channel_mult: tuple[int, ...],
        blocks_per_level: int,
        attention_resolutions: tuple[int, ...],
        pyramid: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(resolution, channels, channel_mult, blocks_per_level, attention_resolutions, style.dropout)
        self.num_classes, self.augment_labels, self.checkpoint = num_classes, augment_labels, checkpoint
        self.resample_filter = style.resample_filter
        self.embedding_channels = 4 * channels
        sizes = [resolution >> level for level in range(len(channel_mult))]

        def block(c_in: int, c_out: int, attend: bool = False, resample: Direction | None = None) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, self.embedding_channels, style, resample, attend)

        first_channels = channels * channel_mult[0] if widen_first else channels
        self.first = nn.Conv2d(image_channels, first_channels, 3, padding=1)
        self.encoder, self.decoder, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c, c_image, widths = first_channels, image_channels, [first_channels]
        for level, factor in enumerate(channel_mult):
            blocks = nn.ModuleList()
            if level:
                blocks.append(block(c, c, resample='down'))
                widths.append(c)
                if pyramid:
                    # Convolve, then filter: the padding of both stands in the convolution.
                    convolution = nn.Conv2d(c_image, c, 3, padding=1 + (len(style.resample_filter) - 1) // 2)
                    self.pyramid.append(nn.Sequential(convolution, Resample('down', style.resample_filter, pad=False)))
                    c_image = c
            for _ in range(blocks_per_level):
                blocks.append(block(c, channels * factor, sizes[level] in attention_resolutions))
                c = channels * factor
                widths.append(c)
            self.encoder.append(blocks)
        self.middle = nn.ModuleList([block(c, c, attend=True), block(c, c)])
        for level in reversed(range(len(channel_mult))):
            blocks = nn.ModuleList([block(c, c, resample='up')] if level < len(channel_mult) - 1 else [])
            for i in range(blocks_per_level + 1):
                attend = sizes[level] in attention_resolutions and (style.attend_all or i == blocks_per_level)
                blocks.append(block(c + widths.pop(), channels * channel_mult[level], attend))
                c = channels * channel_mult[level]
            self.decoder.append(blocks)
        self.last_norm = group_norm(c, style.eps)
        self.last = nn.Conv2d(c, output_channels, 3, padding=1)

    def decode(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, image_channels, H, W), embedding (B, E). Returns (B, output_channels, H, W)."""
        h, image = self.first(x), x
        skips = [h]
        for level, blocks in enumerate(self.encoder):
            for i, block in enumerate(cast(nn.ModuleList, blocks)):
                h = self._run(block, h, embedding)
                if level and not i and self.pyramid:
                    h = image = (h + self.pyramid[level - 1](image)) * math.sqrt(0.5)
                skips.append(h)
        for block in self.middle:
            h = self._run(block, h, embedding)
        for depth, blocks in enumerate(self.decoder):
            for i, block in enumerate(cast(nn.ModuleList, blocks)):
                h = self._run(block, h if depth and not i else torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(F.silu(self.last_norm(h)))

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, use_reentrant=False)  # type: ignore[no-any-return]
        return block(h, embedding)

    def check_conditions(self, x: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> None:
        """Refuse (ModelError) labels that the network cannot take, or that are not one index (one vector, one row) per sample of x.

        The values of class labels are checked on the CPU only: reading them back from a device would wait for it. There an
        index outside of [0, num_classes] counts as no label.
        """
        vectors = labels is not None and labels.is_floating_point()
        if labels is not None and not vectors and not self.num_classes:
            raise ModelError('Labels were given to an unconditional network.', 'Set label_conditioning = True in the model config and train it.')
        if labels is not None and (labels.shape != ((len(x), self.label_width) if vectors else x.shape[:1]) or labels.dtype == torch.bool):
            what = f'Labels of {labels.dtype} and the shape {tuple(labels.shape)} were given for {len(x)} samples.'
            cure = f'Give one class index per sample, (B,) int64, not one-hot rows; or one label vector per sample, (B, {self.label_width}) float.'
            raise ModelError(what, cure)
        if augment_labels is not None and augment_labels.shape != (len(x), self.augment_labels):
            raise ModelError(
                f'Augment labels of the shape {tuple(augment_labels.shape)} were given for {len(x)} samples to a network with '
                f'augment_labels = {self.augment_labels}.',
                "Give one row per sample, and set augment_labels in the model config to the augmentation's label_dim (0 without augmentation).",
            )
        if labels is not None and not vectors and labels.device.type == 'cpu' and not torch.compiler.is_compiling():
            wrong = labels[(labels < 0) | (labels > self.num_classes)]
            if len(wrong):
                raise ModelError(f'The label {int(wrong[0])} is outside of [0, {self.num_classes}].', f'{self.num_classes} means no label.')

    def label_vector(self, labels: Tensor | None, x: Tensor) -> Tensor:
        """What the network adds to its embedding for labels that `check_conditions` accepts, in the dtype and on the device of x.

        Returns: (B, label_width); (1, label_width) for None. Given label vectors it returns these. Zeros where a network without classes has no label.
        """
        if labels is not None and labels.is_floating_point():
            return labels.to(x)
        if self.embed_label is None:
            return x.new_zeros(1, self.label_width)
        if labels is None:
            rows = x.new_zeros(1, self.num_classes)
        else:
            rows = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(x)
        return self.embed_label(rows * self.label_scale)  # type: ignore[no-any-return]


def _check_sizes(
    resolution: int, channels: int, channel_mult: tuple[int, ...], blocks_per_level: int, attention_resolutions: tuple[int, ...], dropout: float
) -> None:
    for key, value in (('resolution', resolution), ('channels', channels), ('blocks_per_level', blocks_per_level)):
        if value < 1:
            raise ModelError(f'{key} = {value!r} is not positive.', 'Use 1 or more.')
    if channels % 4:
        raise ModelError(f'channels = {channels} is not a multiple of 4.', 'Groups of a norm hold at least 4 channels.')
    if not channel_mult or min(channel_mult) < 1:
        raise ModelError(f'channel_mult = {channel_mult!r} does not name one positive factor per level.', 'Use factors such as (1, 2, 2).')
    levels = len(channel_mult)
    if resolution % 2 ** (levels - 1):
        raise ModelError(f'The resolution {resolution} cannot be halved {levels - 1} times.', 'Use fewer entries in channel_mult.')
    sizes = [resolution >> level for level in range(levels)]
    for size in attention_resolutions:
        if size not in sizes:
            raise ModelError(f'attention_resolutions names {size!r}, but the levels have the resolutions {sizes}.', 'Name some of these, or none: ().')
    if not 0 <= dropout < 1:
        raise ModelError(f'dropout = {dropout!r} is outside of [0, 1).', 'Karras et al. use 0.05 to 0.25.')
