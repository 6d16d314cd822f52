"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456), as EDM configures them (Karras et al. 2022, arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug_plugins.diffusion.blocks import Attention, BlockStyle, ResidualBlock, noise_angles, positional_frequencies
from synthaug_plugins.diffusion.unet import EncoderDecoder
from synthaug_plugins.errors import ModelError, nearest

_EMBEDDINGS = ('positional', 'fourier')
_FILTERS = ((1, 1), (1, 3, 3, 1))


class DDPMpp(EncoderDecoder):
    """The raw network F(x; c_noise, labels) of the small published models.

    Published sizes: CIFAR-10 has the defaults and dropout 0.13; FFHQ and AFHQv2 at 64 pixels channel_mult (1, 2, 2, 2). NCSN++ is
    the same network with embedding 'fourier', resample_filter (1, 3, 3, 1) and pyramid.

    Smaller ones: channels 20, channel_mult (1, 2), blocks_per_level 1, attention_resolutions (4,) has 0.29 million parameters,
    for 8-pixel digits; channels 64, channel_mult (1, 2, 2, 2), blocks_per_level 2 has 9.9 million, for a few thousand images of 64 pixels.

    Args:
        resolution, image_channels, num_classes, augment_labels: see `EncoderDecoder`.
        channels, channel_mult, blocks_per_level, attention_resolutions, checkpoint: see `EncoderDecoder`.
        dropout: within residual blocks.
        embedding: of c_noise; 'positional', or 'fourier' with random frequencies of standard deviation 16.
        resample_filter: (1, 1) or (1, 3, 3, 1).
        pyramid: NCSN++'s residual encoder.

    Raises:
        ModelError: an option that makes no network.
    """

    frequencies: Tensor

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        num_classes: int = 0,
        augment_labels: int = 0,
        *,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        blocks_per_level: int = 4,
        attention_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        embedding: str = 'positional',
        resample_filter: tuple[int, ...] = (1, 1),
        pyramid: bool = False,
        checkpoint: bool = False,
    ) -> None:
        if embedding not in _EMBEDDINGS:
            raise ModelError(f'embedding = {embedding!r} is unknown.', nearest(str(embedding), _EMBEDDINGS))
        if tuple(resample_filter) not in _FILTERS:
            raise ModelError(f'resample_filter = {resample_filter!r} is unknown.', 'Known: (1, 1) and (1, 3, 3, 1).')
        style = BlockStyle(
            eps=1e-6,
            skip_scale=math.sqrt(0.5),
            scale_shift=False,
            resample_conv=True,
            head_channels=0,
            attend_all=False,
            resample_filter=tuple(resample_filter),
            dropout=dropout,
        )
        super().__init__(
            resolution,
            image_channels,
            image_channels,
            num_classes,
            augment_labels,
            style,
            channels=channels,
            widen_first=False,
            channel_mult=channel_mult,
            blocks_per_level=blocks_per_level,
            attention_resolutions=attention_resolutions,
            pyramid=pyramid,
            checkpoint=checkpoint,
        )
        self.fourier = embedding == 'fourier'
        self.noise_channels = self.label_width = 2 * channels if self.fourier else channels
        self.label_scale = math.sqrt(num_classes)
        if self.fourier:
            # Rounded to bfloat16: these numbers survive every precision in which the network may be stored or run.
            self.register_buffer('frequencies', (16 * torch.randn(channels)).bfloat16().float())
        self.embed_label = nn.Linear(num_classes, self.noise_channels) if num_classes else None
        self.embed_augment = nn.Linear(augment_labels, self.noise_channels, bias=False) if augment_labels else None
        self.embed0 = nn.Linear(self.noise_channels, self.embedding_channels)
        self.embed1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier's weights without bias; branches and the output start near zero."""
        if self.last.weight.is_meta:  # only the shape is asked for
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.conv1.weight.mul_(1e-5)
            elif isinstance(module, Attention):
                module.qkv.weight.mul_(math.sqrt(0.2))
                module.project.weight.mul_(1e-5)
        self.last.weight.mul_(1e-5)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """Run the network, in the dtype of x.

        Args:
            x: (B, C, H, W) scaled noisy images, in the dtype of the parameters (or under autocast).
            c_noise: (B,) float32 or float64.
            labels: (B,) int64 class indices; num_classes, or None for the whole batch, means no label. Or (B, label_width) label vectors.
            augment_labels: (B, augment_labels) float, or None for images that are not augmented (equal to zeros).

        Returns: (B, C, H, W).

        Raises:
            ModelError: labels that the network cannot take; see `EncoderDecoder.check_conditions`.
        """
        return self.decode(x, self.embedding(x, c_noise, labels, augment_labels))

    def embedding(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """See `EncoderDecoder.embedding`."""
        self.check_conditions(x, labels, augment_labels)
        if self.fourier:
            angles = noise_angles(c_noise, 2 * math.pi * self.frequencies.float())
        else:
            angles = noise_angles(c_noise, positional_frequencies(self.noise_channels // 2, x.device, last=True))
        e = torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)
        e = e + self.label_vector(labels, x)
        if self.embed_augment is not None and augment_labels is not None:
            e = e + self.embed_augment(augment_labels.to(x.dtype))
        return F.silu(self.embed1(F.silu(self.embed0(e))))
