"""The U-Nets themselves: the encoder, which classifiers of noisy images have too, and the encoder with its decoder."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synthaug_plugins.diffusion.blocks import BlockStyle, Direction, Resample, ResidualBlock, group_norm
from synthaug_plugins.errors import ModelError


class Encoder(nn.Module):
    """The first half of a U-Net, without its embeddings: `encode(x, e)`; and the checks and label vectors that all these networks need.

    Where a network takes class labels it also takes, conditional or not, label vectors (B, `label_width`) of any floating type: one stands in the
    place of a class's own, which `label_vector` says.

    Args:
        resolution: height and width of the images, divisible by 2 per level below the first.
        image_channels: of x.
        num_classes, augment_labels: what `forward` of the network accepts; 0 for none.
        style: of the blocks.
        channels: a level's width is `channels` times its entry in channel_mult.
        widen_first: the first convolution has the width of the first level (ADM), not `channels` (DDPM++).
        channel_mult: one factor per level; each level halves the resolution of the one before.
        blocks_per_level: residual blocks per level of the encoder.
        attention_resolutions: resolutions whose blocks attend; the middle always does.
        pyramid: add the downsampled image, passed through convolutions, to the encoder at every level (NCSN++).
        checkpoint: in training, keep only the blocks' inputs and run every block again in the backward pass; equal gradients,
            less memory, about a third more time.

    Attributes:
        middle_size: (C, h, w) of what `encode` returns.

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
        first_channels = channels * channel_mult[0] if widen_first else channels
        self.first = nn.Conv2d(image_channels, first_channels, 3, padding=1)
        # The decoder is empty here. Its place decides in which order initial weights are drawn, so that a seed keeps its weights.
        self.encoder, self.decoder, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c, c_image = first_channels, image_channels
        self._widths = [first_channels]
        for level, factor in enumerate(channel_mult):
            blocks = nn.ModuleList()
            if level:
                blocks.append(self._block(style, c, c, resample='down'))
                self._widths.append(c)
                if pyramid:
                    # Convolve, then filter: the padding of both stands in the convolution.
                    convolution = nn.Conv2d(c_image, c, 3, padding=1 + (len(style.resample_filter) - 1) // 2)
                    self.pyramid.append(nn.Sequential(convolution, Resample('down', style.resample_filter, pad=False)))
                    c_image = c
            for _ in range(blocks_per_level):
                blocks.append(self._block(style, c, channels * factor, sizes[level] in attention_resolutions))
                c = channels * factor
                self._widths.append(c)
            self.encoder.append(blocks)
        self.middle = nn.ModuleList([self._block(style, c, c, attend=True), self._block(style, c, c)])
        self.middle_size = c, sizes[-1], sizes[-1]

    def _block(self, style: BlockStyle, c_in: int, c_out: int, attend: bool = False, resample: Direction | None = None) -> ResidualBlock:
        return ResidualBlock(c_in, c_out, self.embedding_channels, style, resample, attend)

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, image_channels, H, W), embedding (B, E). Returns what the middle makes, (B, *middle_size), and all that a decoder is shown besides."""
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
        return h, skips

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


class EncoderDecoder(Encoder):
    """The whole U-Net, without its embeddings: `decode(x, e)`.

    Args:
        output_channels: of the result.
        blocks_per_level: as for `Encoder`; a decoder level has one more.
        resolution, image_channels, num_classes, augment_labels, style, channels, widen_first, channel_mult, attention_resolutions, pyramid, checkpoint:
            see `Encoder`.

    Raises:
        ModelError: see `Encoder`.
    """

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
        super().__init__(
            resolution,
            image_channels,
            num_classes,
            augment_labels,
            style,
            channels=channels,
            widen_first=widen_first,
            channel_mult=channel_mult,
            blocks_per_level=blocks_per_level,
            attention_resolutions=attention_resolutions,
            pyramid=pyramid,
            checkpoint=checkpoint,
        )
        c, widths = self.middle_size[0], list(self._widths)
        for level in reversed(range(len(channel_mult))):
            blocks = nn.ModuleList([self._block(style, c, c, resample='up')] if level < len(channel_mult) - 1 else [])
            for i in range(blocks_per_level + 1):
                attend = resolution >> level in attention_resolutions and (style.attend_all or i == blocks_per_level)
                blocks.append(self._block(style, c + widths.pop(), channels * channel_mult[level], attend))
                c = channels * channel_mult[level]
            self.decoder.append(blocks)
        self.last_norm = group_norm(c, style.eps)
        self.last = nn.Conv2d(c, output_channels, 3, padding=1)

    @abstractmethod
    def embedding(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """What the blocks are told of noise, class and augmentation: (B, E) in the dtype of x. Arguments as in the network's `forward`."""

    def decode(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, image_channels, H, W), embedding (B, E). Returns (B, output_channels, H, W)."""
        h, skips = self.encode(x, embedding)
        for depth, blocks in enumerate(self.decoder):
            for i, block in enumerate(cast(nn.ModuleList, blocks)):
                h = self._run(block, h if depth and not i else torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(F.silu(self.last_norm(h)))  # type: ignore[no-any-return]

    def middle_features(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network has made of its input in its middle, (B, *middle_size); the decoder does not run. Arguments and errors as in `forward`."""
        return self.encode(x, self.embedding(x, c_noise, labels, None))[0]


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
