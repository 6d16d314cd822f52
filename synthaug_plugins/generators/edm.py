"""Images from pure noise by a class-conditional EDM model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.conditions import LabelConditions
from synthaug_plugins.generators.denoiser_generator import DenoiserGenerator
from synthaug_plugins.generators.guidance import build_guidance
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.registry import GENERATORS


@GENERATORS.register_module()
class EDM(DenoiserGenerator):
    """Sample a diffusion model by the design space of EDM (Karras et al. 2022). Recipe classes find the model's own labels by name.

    Args:
        model: `embedded:digits_edm`, or a folder with config.json and model.safetensors, as `synthaug learn edm` makes.
        sampler: options of `diffusion.sample` as a dict, each with EDM's value as the default:
            num_steps (18; Heun costs 2 * num_steps - 1 network calls per image);
            solver ('heun'; 'euler', 'dpmpp_2m', 'unipc'), alpha (1, the second-order family);
            discretization ('edm'; 'vp', 've', 'iddpm'), schedule ('linear'; 'vp', 've', 'flow'), scaling ('none'; 'vp', 'flow'),
            and their constants rho, epsilon_s, C_1, C_2, M;
            sigma_min, sigma_max (lowest and highest noise level, cut to what the model supports);
            S_churn, S_min, S_max, S_noise (fresh noise on the way: how much, between which noise levels, its standard deviation);
            eta (0; up to 1, the ancestral noise of DDPM, with solver='euler');
            preset (a named set of the above: 'edm', 'vp', 've', 'iddpm', 'churn_cifar10_vp', ...).
        guidance: entries such as dict(type='synthaug_plugins.ClassifierFree', weight=0.5, interval=(0.2, 5)); their effects add up. One of them may lead to
            what is rare: MinorityClassifier, SelfGuided or BoostAndSkip.
        precision: 'fp32', 'bf16' or 'fp16', in which the network runs.

    Raises:
        ModelError, RecipeError: see `DenoiserGenerator`.
    """

    def __init__(
        self,
        model: str,
        sampler: Mapping[str, Any] | None = None,
        guidance: Sequence[Mapping[str, Any]] = (),
        precision: str = 'fp32',
    ) -> None:
        super().__init__(LabelConditions(DenoiserModel(model), True, build_guidance(guidance)), sampler, precision)

    def check(self, classes: Sequence[str]) -> None:
        assert isinstance(self.model, DenoiserModel)
        if self.model.takes_labels:
            super().check(classes)
            return
        seen = self.model.classes or classes
        if len(classes) > 1 or len(seen) > 1:
            raise ModelError(
                f'The model {self.model.name!r} takes no class labels, but {len(max(classes, seen, key=len))} classes are involved: '
                'nobody would know which class an image shows.',
                'Use a class-conditional model, or RealGuidance with use_labels=False, which keeps the class of a real image.',
            )
        super().check(classes if self.model.classes else ())
