"""A classifier of noisy images by level: p(level | x; sigma), where levels are ordered, from common to rare (Um et al. 2024, arXiv 2301.12334).

Its gradient moves a denoiser towards a level, see `guidance.ClassifierGradient`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug_plugins.diffusion.blocks import Attention, BlockStyle, ResidualBlock, group_norm, noise_angles, positional_frequencies
from synthaug_plugins.diffusion.preconditioning import EDMPrecond, Precond
from synthaug_plugins.diffusion.unet import Encoder, EncoderDecoder
from synthaug_plugins.errors import ModelError, nearest

LOSSES, POOLINGS = ('ordinal', 'cross_entropy'), ('attention', 'mean')

Features = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x (B, C, H, W), sigma, labels) -> (B, C', h, w), differentiable in x."""


class LevelClassifier(Encoder):
    """The first half of a U-Net (ADM's blocks), a pooling and a linear layer; its input has unit variance and it is told c_noise = ln(sigma) / 4, as EDM's
    networks are (Karras et al. 2022, arXiv 2206.00364, Table 1).

    Levels have an order, and 'ordinal' uses it: the network gives one number f, how rare an image is, and limits b_0 < ... < b_{L-2} that are learned, too;
    p(level <= j) = sigmoid(s (b_j - f)) (McCullagh 1980: proportional odds, with a scale). s is learned for each noise level and class: little noise
    leaves one level likely, much noise all of them, and with s = 1 throughout one set of limits could not say both. 'cross_entropy' gives every level a number
    of its own, as published.

    Args:
        levels: L, 2 or more.
        resolution: height and width of its input, images or features.
        image_channels: of its input.
        num_classes: of the label that it is told beside the image; 0 for a classifier that is told none.
        sigma_data: root mean square of the images' values.
        sigma_min, sigma_max: the noise levels that it was trained at, positive and finite.
        features: what it looks at in place of the image, such as `MiddleFeatures`. Its weights are no part of the classifier's.
        loss: 'ordinal' or 'cross_entropy'.
        pooling: 'attention' over the pixels of the last features, or their 'mean'.
        channels, channel_mult, blocks_per_level, attention_resolutions: see `Encoder`. Published for features of 8 x 8: 128, (1,), 2, (8,).
        head_channels: channels of an attention head.
        dropout: within residual blocks.

    Raises:
        ModelError: an option that makes no classifier; it is named.
    """

    def __init__(
        self,
        levels: int,
        resolution: int,
        image_channels: int,
        num_classes: int = 0,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        features: Features | None = None,
        *,
        loss: str = 'ordinal',
        pooling: str = 'attention',
        channels: int = 32,
        channel_mult: tuple[int, ...] = (1, 2),
        blocks_per_level: int = 1,
        attention_resolutions: tuple[int, ...] = (),
        head_channels: int = 64,
        dropout: float = 0.0,
    ) -> None:
        if levels < 2:
            raise ModelError(f'A classifier of {levels} levels has nothing to tell apart.', 'Use 2 levels or more.')
        for key, value, known in (('loss', loss, LOSSES), ('pooling', pooling, POOLINGS)):
            if value not in known:
                raise ModelError(f'{key} = {value!r} is unknown.', nearest(str(value), known))
        if head_channels < 1:
            raise ModelError(f'head_channels = {head_channels!r} is not positive.', 'ADM has 64.')
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ModelError(f'The noise levels of a classifier are given as {sigma_min!r} to {sigma_max!r}.', 'They are positive, finite and rising.')
        style = BlockStyle(eps=1e-5, skip_scale=1.0, scale_shift=True, resample_conv=False, head_channels=head_channels, attend_all=True, dropout=dropout)
        super().__init__(
            resolution,
            image_channels,
            num_classes,
            0,
            style,
            channels=channels,
            widen_first=True,
            channel_mult=channel_mult,
            blocks_per_level=blocks_per_level,
            attention_resolutions=attention_resolutions,
        )
        self.levels, self.loss, self.features = levels, loss, features
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._scaling = EDMPrecond(nn.Identity(), sigma_data)  # has no weights
        self.noise_channels = self.label_width = channels
        self.embed0 = nn.Linear(channels, self.embedding_channels)
        self.embed1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self.embed_label = nn.Linear(num_classes, channels, bias=False) if num_classes else None
        self.label_scale = math.sqrt(num_classes)
        wide, height, width = self.middle_size
        self.last_norm = group_norm(wide, style.eps)
        self.pool = AttentionPool(wide, height * width, head_channels) if pooling == 'attention' else None
        self.last = nn.Linear(wide, 1 if loss == 'ordinal' else levels)
        if loss == 'ordinal':
            self.sharpness = nn.Linear(self.embedding_channels, 1)  # ln s
            # The lowest limit, then the logarithm of each gap: whatever is learned, the limits rise. At the start, with f = 0, all levels are equally likely.
            limits = torch.logit(torch.arange(1, levels, dtype=torch.float64, device='cpu') / levels)
            self.limits = nn.Parameter(torch.cat([limits[:1], limits.diff().log()]).float())
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """torch's own initial weights; branches and the output start at zero: every level is equally likely."""
        zero: list[nn.Module] = [self.last, *([self.sharpness] if self.loss == 'ordinal' else [])]
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zero.append(module.conv1)
            elif isinstance(module, Attention):
                zero.append(module.project)
        for module in zero:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(level | x; sigma) of every level, differentiable in x.

        Args:
            x: (B, C, H, W) clean image in [-1, 1] plus sigma times unit normal noise, float32 or float64.
            sigma: noise levels above 0, (B,) or 0-dim (on any device).
            labels: (B,) int64 class of each sample, where num_classes is not 0.

        Returns: (B, L) float32, each row the logarithm of numbers that sum to 1; finite wherever the network's output is.

        Raises:
            ModelError: labels are missing, are not wanted, or are no classes (their values are looked at on the CPU only).
        """
        self._check_labels(x, labels)
        dtype = self.last.weight.dtype
        scaled, c_noise = self._scaling.network_input(x, sigma)
        h = (scaled if self.features is None else self.features(x, sigma, labels)).to(dtype)
        angles = noise_angles(c_noise, positional_frequencies(self.noise_channels // 2, x.device, last=True))
        e = torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)
        if labels is not None:
            e = e + self.label_vector(labels, h)
        e = F.silu(self.embed1(F.silu(self.embed0(e))))
        h = F.silu(self.last_norm(self.encode(h, e)[0]))
        h = self.last(h.mean(dim=(2, 3)) if self.pool is None else self.pool(h)).float()
        if self.loss == 'cross_entropy':
            return h.log_softmax(dim=1)
        return ordinal_log_probs(h[:, 0], self.limits.float(), self.sharpness(e)[:, 0].float())

    def log_prob(self, x: Tensor, sigma: Tensor, levels: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(levels[i] | x[i]; sigma[i]), (B,) float32. levels: (B,) int64 in [0, L). The rest: see `forward`."""
        return self(x, sigma, labels).gather(1, levels.to(x.device)[:, None])[:, 0]

    def _check_labels(self, x: Tensor, labels: Tensor | None) -> None:
        if labels is None and self.num_classes:
            raise ModelError('This classifier of levels is told the class, but labels are missing.', 'Give one class index per sample.')
        if labels is not None and labels.is_floating_point():
            raise ModelError('Label vectors were given to a classifier of levels.', 'Give one class index per sample, (B,) int64.')
        self.check_conditions(x, labels, None)
        if labels is not None and labels.device.type == 'cpu' and bool((labels == self.num_classes).any()):
            raise ModelError('This classifier of levels is told the class, but a label says that there is none.', 'Give every sample a class.')


class AttentionPool(nn.Module):
    """One vector of a feature map: the mean asks all pixels, and itself, by attention (as in CLIP's ResNets, Radford et al. 2021, arXiv 2103.00020).

    Args:
        channels: of the map.
        pixels: height times width.
        head_channels: channels of an attention head.

    Raises:
        ModelError: the channels cannot be split into heads.
    """

    def __init__(self, channels: int, pixels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(channels // head_channels, 1)
        if channels % self.heads:
            raise ModelError(f'{channels} channels cannot be split into {self.heads} attention heads.', 'Choose channels as a multiple of head_channels.')
        self.place = nn.Parameter(torch.randn(pixels + 1, channels) / math.sqrt(channels))
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C)."""
        pixels = h.flatten(2).transpose(1, 2)
        tokens = torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1) + self.place
        q = self.query(tokens[:, :1])
        k, v = self.key_value(tokens).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))  # type: ignore[no-any-return]


def ordinal_log_probs(f: Tensor, limits: Tensor, log_scale: Tensor) -> Tensor:
    """log p(level = j) under p(level <= j) = sigmoid(s (b_j - f)) (McCullagh 1980).

    With a < b the limits of a level less f, times s: sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), a product, so that its logarithm is a
    sum without cancellation, and finite however far f lies from the level.

    Args:
        f: (B,) how rare each sample is.
        limits: (L - 1,): b_0, then ln(b_1 - b_0), ln(b_2 - b_1), ...
        log_scale: (B,) ln s.

    Returns: (B, L) in the dtype of f.
    """
    # Within these bounds, which no training comes near, exp neither vanishes nor overflows.
    log_scale = log_scale.clamp(-10, 10)[:, None]
    gaps = (limits[1:] + log_scale).clamp(-20, 20).exp()
    first = (limits[0] - f[:, None]) * log_scale.exp()
    b = torch.cat([first, first + gaps.cumsum(1)], dim=1)
    none = torch.zeros_like(first)
    below, above = torch.cat([F.logsigmoid(b), none], dim=1), torch.cat([none, F.logsigmoid(-b)], dim=1)
    return below + above + torch.cat([none, (-(-gaps).expm1()).log(), none], dim=1)


class MiddleFeatures:
    """What a denoiser's network makes of a noisy image in its middle, in place of the image: (B, C', h, w).

    Only the encoder runs. Gradients pass through it to x; its weights are not to be learned.

    Args:
        denoiser: one of ours, loaded.

    Attributes:
        size: (C', h, w).

    Raises:
        ModelError: a denoiser whose network has no such middle.
    """

    def __init__(self, denoiser: Precond) -> None:
        if not isinstance(denoiser, Precond) or not isinstance(denoiser.network, EncoderDecoder):
            raise ModelError(f'{type(denoiser).__name__} has no features to classify by.', 'Use a denoiser of our own, or classify the images themselves.')
        self.denoiser, self.network = denoiser, denoiser.network
        self.size = denoiser.network.middle_size

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `Features`. labels: as the denoiser takes them; None for none."""
        scaled, c_noise = self.denoiser.network_input(x, sigma)
        return self.network.middle_features(scaled, c_noise, labels if self.network.num_classes else None)
