"""ADM (Dhariwal and Nichol 2021, arXiv 2105.05233), as EDM configures it (Karras et al. 2022, arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug_plugins.diffusion.blocks import Attention, BlockStyle, ResidualBlock, noise_angles, positional_frequencies
from synthaug_plugins.diffusion.unet import EncoderDecoder


class ADM(EncoderDecoder):
    """The raw network F(x; c_noise, labels) of the larger published models. The defaults are those of ImageNet at 64 pixels (dropout 0.1 there).

    Args:
        resolution, image_channels, num_classes, augment_labels: see `EncoderDecoder`.
        channels, channel_mult, blocks_per_level, attention_resolutions, checkpoint: see `EncoderDecoder`.
        head_channels: channels of an attention head.
        dropout: within residual blocks.
        learned_variance: the result has twice the channels; the second half belongs to the variance of iDDPM's objective.

    Raises:
        ModelError: an option that makes no network.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        num_classes: int = 0,
        augment_labels: int = 0,
        *,
        channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        blocks_per_level: int = 3,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        head_channels: int = 64,
        dropout: float = 0.0,
        learned_variance: bool = False,
        checkpoint: bool = False,
    ) -> None:
        style = BlockStyle(eps=1e-5, skip_scale=1.0, scale_shift=True, resample_conv=False, head_channels=head_channels, attend_all=True, dropout=dropout)
        super().__init__(
            resolution,
            image_channels,
            (2 if learned_variance else 1) * image_channels,
            num_classes,
            augment_labels,
            style,
            channels=channels,
            widen_first=True,
            channel_mult=channel_mult,
            blocks_per_level=blocks_per_level,
            attention_resolutions=attention_resolutions,
            checkpoint=checkpoint,
        )
        self.noise_channels, self.label_width = channels, self.embedding_channels
        self.embed_augment = nn.Linear(augment_labels, channels, bias=False) if augment_labels else None
        self.embed0 = nn.Linear(channels, self.embedding_channels)
        self.embed1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self.embed_label = nn.Linear(num_classes, self.embedding_channels, bias=False) if num_classes else None
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """torch's own initial weights (Kaiming's); branches, augment labels and the output start at zero, class vectors with unit variance."""
        zero: list[nn.Module] = [self.last]
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zero.append(module.conv1)
            elif isinstance(module, Attention):
                zero.append(module.project)
        if self.embed_augment is not None:
            zero.append(self.embed_augment)
        for module in zero:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        if self.embed_label is not None:
            nn.init.normal_(self.embed_label.weight)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """Run the network, in the dtype of x. Arguments and errors: see `DDPMpp.forward`. Returns (B, C, H, W), or (B, 2C, H, W) with learned_variance."""
        return self.decode(x, self.embedding(x, c_noise, labels, augment_labels))

    def embedding(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """See `EncoderDecoder.embedding`."""
        self.check_conditions(x, labels, augment_labels)
        angles = noise_angles(c_noise, positional_frequencies(self.noise_channels // 2, x.device, last=False))
        e = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        if self.embed_augment is not None and augment_labels is not None:
            e = e + self.embed_augment(augment_labels.to(x.dtype))
        e = self.embed1(F.silu(self.embed0(e))) + self.label_vector(labels, x)
        return F.silu(e)
