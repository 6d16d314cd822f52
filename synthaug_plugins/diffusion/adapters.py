"""Models of diffusers as denoisers, so that every sampler and every guidance runs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synthaug_plugins.diffusion.adapters_networks import CONCAT, check_labels, find_network
from synthaug_plugins.diffusion.adapters_timesteps import read_timesteps
from synthaug_plugins.diffusion.latents import Latents
from synthaug_plugins.errors import ModelError, RecipeError, nearest

PREDICTION_TYPES = ('epsilon', 'v_prediction', 'sample', 'flow')
TIMESTEPS = ('continuous', 'rounded')


class DiffusersDenoiser:
    """A diffusers model as a `Denoiser`: x = image + sigma * noise in the model's own space, pixels or latents.

    D = c_skip x + c_out F(c_in x; t(sigma)). With c_in = 1 / sqrt(1 + sigma^2) for the alpha_bar kind and 1 / (1 + sigma) for flows:

    | prediction_type | F predicts | c_skip | c_out |
    |---|---|---|---|
    | epsilon | the noise | 1 | -sigma |
    | v_prediction | sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image (Salimans and Ho 2022) | c_in^2 | -sigma c_in |
    | sample | the image | 0 | 1 |
    | flow | noise - image (Lipman et al. 2023) | c_in | -sigma c_in |

    The network runs in its own dtype, the coefficients are float64, and the result has the dtype of x (float32 at least). Channels
    of learned variance are dropped. Gradients flow through. The model should be in eval mode (`from_pretrained` leaves it so).

    A U-Net that takes more channels than it returns sees more than x: it is given the condition `concat`, (B, c, h, w), below c_in x and not scaled.
    For inpainting that is the mask, 1 where the image is made anew, and the latents of the masked image, see `inpainting.Region`.

    Args:
        model: of a class in `adapters_networks.NETWORKS`.
        scheduler: the diffusers scheduler of the model or its config, see `read_timesteps`; says the noise that the model was
            trained with, and nothing about how it is sampled here.
        prediction_type: see the table; what the scheduler says unless given.
        timesteps: 'continuous' gives the model timesteps with a fraction. 'rounded' gives it the nearest whole timestep, and
            `round_sigma` snaps to the noise levels of whole timesteps so that sampler and model agree.
        vae: the model's autoencoder, for `encode` and `decode`.

    Attributes:
        sigma_min, sigma_max: noise levels of the first and the last timestep. A flow's last one is cut to 999999, that of a table with
            zero terminal signal to 131072 (see `FlowTimesteps`, `BetaTimesteps`).

    Raises:
        ModelError: a model of another class, or one whose channels or time embedding do not fit.
        RecipeError: an unknown scheduler, prediction type or timestep rule.
    """

    def __init__(self, model: Any, scheduler: Any, *, prediction_type: str | None = None, timesteps: str = 'continuous', vae: Any = None) -> None:
        self.model, self.vae = model, vae
        module = getattr(model, '_orig_mod', model)  # what torch.compile wraps
        self._model_class, self._network = find_network(module)
        self._timesteps, config = read_timesteps(scheduler)
        self.sigma_min, self.sigma_max = self._timesteps.sigma_min, self._timesteps.sigma_max
        self.prediction_type = self._prediction_type(prediction_type, config.get('prediction_type'))
        if timesteps not in TIMESTEPS:
            raise RecipeError(f'timesteps = {timesteps!r} is unknown.', nearest(str(timesteps), TIMESTEPS))
        embedding = model.config.get('time_embedding_type', 'positional')
        if embedding == 'fourier':
            raise ModelError("The model has time_embedding_type = 'fourier': it is told a noise level, no timestep.", 'Such models have no adapter here.')
        if embedding == 'learned' and timesteps != 'rounded':
            raise RecipeError("The model has time_embedding_type = 'learned', a row per whole timestep.", "Use timesteps='rounded'.")
        self._rounded = timesteps == 'rounded'
        self._channels, out_channels = self._network.channels(model.config)
        if out_channels not in (self._channels, 2 * self._channels):
            cure = 'It must return as many, or twice as many (learned variance).'
            raise ModelError(f'The model takes {self._channels} channels and returns {out_channels}.', cure)
        self._known = self._network.known_conditions(module)
        self._required = self._network.required(module)
        self._beside = self._network.beside(model.config)
        self._num_labels = self._network.num_labels(module)
        self._time_scale = self._network.time_scale(model.config)

    def _prediction_type(self, given: str | None, configured: str | None) -> str:
        """The prediction type asked for, else the scheduler's own; refused if it does not fit the scheduler's kind."""
        kind = self._timesteps.kind
        name = given or ('flow' if kind == 'flow' else configured)
        if name is None:
            raise RecipeError('The scheduler does not say what the model predicts.', f'Give prediction_type, one of {", ".join(PREDICTION_TYPES)}.')
        if name not in PREDICTION_TYPES:
            raise RecipeError(f'prediction_type = {name!r} is unknown.', nearest(str(name), PREDICTION_TYPES))
        if (name, kind) in (('flow', 'beta'), ('v_prediction', 'flow')):
            known = [p for p in PREDICTION_TYPES if p != name]
            raise RecipeError(f'prediction_type = {name!r} does not fit a scheduler of the {kind} kind.', f'It can be {", ".join(known)}.')
        return name

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """See `Denoiser.__call__`.

        Args:
            cond: class labels (B,) int64; or a mapping from the names of the model's own arguments (encoder_hidden_states,
                pooled_projections, added_cond_kwargs ...) to tensors with B rows; or None.

        Raises:
            ModelError: a condition that the model does not take, one that it lacks, the wrong number of rows or channels, or a class label
                outside of the model's classes (on the CPU only: reading labels back from a device would wait for it).
        """
        if x.shape[1] != self._channels:
            raise ModelError(f'x has {x.shape[1]} channels, the model takes {self._channels}.', 'Latents come from `encode`.')
        network_dtype = self.model.dtype  # looked up once: diffusers asks all modules of the network for it
        conditions = self._conditions(x, cond, network_dtype)
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.to(dtype)
        s = torch.as_tensor(sigma)
        s = s.to('cpu' if s.ndim == 0 and s.device.type == 'cpu' else x.device, torch.float32 if s.device.type == 'mps' else torch.float64)
        c_skip, c_out, c_in = self.coefficients(s)
        # A 0-dim CPU number enters a kernel as its argument: no copy to the device.
        c_skip, c_out, c_in = (c if c.ndim == 0 else c.to(dtype).reshape(-1, 1, 1, 1) for c in (c_skip, c_out, c_in))
        seen = (c_in * x).to(network_dtype)
        if self._beside:
            seen = torch.cat([seen, conditions.pop(CONCAT)], dim=1)
        F_x = self._network.call(self.model, seen, self._model_time(s, x), conditions)
        return c_skip * x + c_out * F_x[:, : self._channels].to(dtype)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) at noise levels, each of sigma's shape and dtype: D = c_skip x + c_out F(c_in x), see the table above."""
        c_in = self._timesteps.c_in(sigma)
        c_skip, c_out = {
            'epsilon': (torch.ones_like(sigma), -sigma),
            'v_prediction': (c_in**2, -sigma * c_in),
            'sample': (torch.zeros_like(sigma), torch.ones_like(sigma)),
            'flow': (c_in, -sigma * c_in),
        }[self.prediction_type]
        return c_skip, c_out, c_in

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2: with it, |D - image|^2 is the squared error of F, which such models are trained on, whatever F predicts.

        For D - image = c_out (F - F*) with F* = (image - c_skip x) / c_out, what F is asked for.

        Args:
            sigma: noise levels, of any shape.

        Returns: of the shape and dtype of sigma.
        """
        return 1 / self.coefficients(sigma)[1] ** 2

    @property
    def training_timesteps(self) -> tuple[int, int]:
        """The first and the last whole timestep that such a model is trained at: 0 to T - 1 of a table, 1 to T of a flow, whose 0 is no noise."""
        first = 1 if self._timesteps.kind == 'flow' else 0
        return first, first + self._timesteps.count - 1

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The noise level of the nearest whole timestep if `timesteps='rounded'`, else sigma as it is."""
        return self.sigma_of(self._timesteps.timestep_of(sigma, rounded=True)) if self._rounded else sigma

    def sigma_of(self, timestep: Tensor | float) -> Tensor:
        """The noise level of a timestep, whole or not: float64, of its shape."""
        return self._timesteps.sigma_of(torch.as_tensor(timestep))

    def timestep_of(self, sigma: Tensor | float) -> Tensor:
        """The timestep that the model is given at a noise level: float64, of its shape; whole if `timesteps='rounded'`."""
        return self._timesteps.timestep_of(torch.as_tensor(sigma), self._rounded)

    def sigmas_of(self, num_inference_steps: int, *, mu: float | None = None, shares: Sequence[float] | None = None) -> Tensor:
        """The noise levels that the scheduler visits in that many steps, for `sample(..., sigmas=...)`. See `Timesteps.sigmas_of`.

        Deterministic pipelines come out again: DDIM and Euler with solver='euler', Heun with 'heun', flow Euler with 'euler',
        schedule='flow', scaling='flow'. A pipeline mostly starts from unit noise in the model's coordinates, `sample` from
        sigma * latents in EDM's: pass latents / (sigma c_in), c_in at the first level. DDIM repeats exactly where its steps have
        equal length; elsewhere a step of its own does not end where the next begins.
        """
        return self._timesteps.sigmas_of(num_inference_steps, mu, shares)

    def _model_time(self, s: Tensor, x: Tensor) -> Tensor:
        """(B,) timesteps on the device of x as the network counts them: float32, or int64 if rounded and it counts as the scheduler does."""
        t = self._timesteps.timestep_of(s, self._rounded)
        dtype = torch.int64 if self._rounded else torch.float32
        t = torch.full((len(x),), t.item(), dtype=dtype, device=x.device) if t.device.type == 'cpu' and t.ndim == 0 else t.to(dtype).expand(len(x))
        return t if self._time_scale == 1 else t * self._time_scale

    def _conditions(self, x: Tensor, cond: Any, dtype: torch.dtype) -> dict[str, Any]:
        """The model's keyword arguments, checked, on the device of x and in the dtype of the network."""
        given = dict(cond) if isinstance(cond, Mapping) else {} if cond is None else {'class_labels': cond}
        for name in given:
            if name not in self._known:
                raise ModelError(f'The model {self._model_class} takes no condition {name!r}.', nearest(name, self._known))
        missing = [name for name in self._required if given.get(name) is None]
        if missing:
            raise ModelError(f'The model {self._model_class} needs the condition {missing[0]!r}.', f'Pass cond=dict({missing[0]}=...).')
        for name in self._required:
            if not isinstance(given[name], Tensor | Mapping):
                raise ModelError(f'The condition {name!r} is of the type {type(given[name]).__name__}.', 'Give a tensor with one row per sample.')
        if self._beside and given[CONCAT].shape[1:] != (self._beside, *x.shape[2:]):
            what = f'The condition {CONCAT!r} has the shape {tuple(given[CONCAT].shape)} beside x {tuple(x.shape)}.'
            raise ModelError(what, f'Give (B, {self._beside}, h, w).')
        if self._num_labels:
            check_labels(given['class_labels'], self._num_labels)

        def fit(value: Any, name: str) -> Any:
            if isinstance(value, Mapping):
                return {key: fit(entry, key) for key, entry in value.items()}
            if not isinstance(value, Tensor):
                return value
            if value.ndim == 0 or len(value) != len(x):
                raise ModelError(f'The condition {name!r} has the shape {tuple(value.shape)} for {len(x)} samples.', 'Give one row per sample.')
            return value.to(x.device, dtype if value.is_floating_point() else value.dtype)

        return {name: fit(value, name) for name, value in given.items()}

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Latents.encode`.

        Raises:
            ModelError: no VAE was given, or noise for a VAE without a posterior.
        """
        return self._latents().encode(images, noise)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Latents.posterior`. Raises ModelError: no VAE was given."""
        return self._latents().posterior(images)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Latents.decode`. Raises ModelError: no VAE was given."""
        return self._latents().decode(latents)

    def _latents(self) -> Latents:
        if self.vae is None:
            raise ModelError('The denoiser has no VAE.', 'Pass vae= for a model of latents; a model of pixels needs no encoding.')
        return Latents(self.vae)
