"""The image tower of a CLIP as a backbone of MMPretrain, frozen, tuned in part, or with adapters; and its stand-in for features made before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.errors import MissingExtra, ModelError, RecipeError, nearest
from synthaug_plugins.model_parts import named_matches
from synthaug_plugins.registry import MODELS

_LAST_STAGE = r'layer4\.\d+\.conv[123]'
LORA_DEFAULTS = {'r': 8, 'alpha': 16, 'dropout': 0.0, 'targets': None}


@MODELS.register_module()
class OpenClipVisual(BaseBackbone):
    """Any image tower of open_clip: normalised images (B, 3, h, w) to `(features,)`, (B, d) as the tower gives them, not of unit length.

    Weights are those of the CLIP from the start, not only after `init_weights`: a checkpoint of a head that was tuned on cached features
    holds no tower, and a classifier that loads it must still be whole. A checkpoint of this backbone holds the tower.

    Args:
        model, pretrained, revision, quick_gelu: the CLIP, see `ClipModel`.
        tune: regular expressions; a parameter of the tower trains if one is found in its name, such as 'attnpool' or 'resblocks.11'; '' trains all.
            Default: nothing trains.
        lora: train low-rank adapters instead (Hu et al., ICLR 2022; package peft): `dict(r=8, alpha=16, dropout=0.0, targets=None)`, `targets` a
            regular expression that must match whole module names; default: every attention block of a transformer, or the convolutions of a ResNet's
            last stage.

    Raises:
        ModelError: see `ClipModel`; a tower that gives no single vector per image.
        RecipeError: both `tune` and `lora`; an expression that finds nothing or is not valid.
        MissingExtra: `lora` without peft.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        revision: str | None = None,
        quick_gelu: bool | None = None,
        tune: str | Sequence[str] | None = None,
        lora: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if tune is not None and lora is not None:
            raise RecipeError('OpenClipVisual: tune and lora are two ways to train the tower.', 'Leave one of them out.')
        clip = ClipModel(model, pretrained, revision, quick_gelu)
        clip.check()
        clip.load(torch.device('cpu'))
        assert clip.model is not None
        # A copy: inspectors and the text head share the one in memory, and this one trains.
        tower: Any = copy.deepcopy(clip.model.visual)
        tower.requires_grad_(False)
        if tune is not None:
            for _, parameter in named_matches([tune] if isinstance(tune, str) else tune, dict(tower.named_parameters()), 'tune'):
                parameter.requires_grad_(True)
        self.visual: Any = tower if lora is None else with_lora(tower, lora)
        self._register_load_state_dict_pre_hook(_keep_tower, with_module=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, 3, h, w) to `((B, d),)`."""
        features = self.visual(x)
        if not isinstance(features, torch.Tensor) or features.ndim != 2:
            raise ModelError(f'The tower {type(self.visual).__name__} gives no single vector per image.', 'Use a CLIP with a pooled output.')
        return (features,)


def _keep_tower(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """A checkpoint without any tower leaves this one as it is, and nothing is reported as missing."""
    if not any(key.startswith(prefix) for key in state_dict):
        state_dict.update({prefix + key: value for key, value in module.state_dict().items()})


@MODELS.register_module()
class CachedFeatures(BaseBackbone):
    """Stands where the tower would: its input are features already, (B, d), see `FeatureDataset`. It has no parameters."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, d) to `((B, d),)`."""
        return (x,)


def with_lora(tower: Any, given: Mapping[str, Any]) -> Any:
    """The tower with low-rank adapters beside its frozen layers; at the start it computes what it did without them.

    Raises:
        RecipeError: an unknown key, a value out of range, targets that match no layer that peft can adapt.
        MissingExtra: peft is not installed.
    """
    for key in given:
        if key not in LORA_DEFAULTS:
            raise RecipeError(f'lora has no option {key!r}.', nearest(key, LORA_DEFAULTS))
    options = {**LORA_DEFAULTS, **given}
    if not isinstance(options['r'], int) or options['r'] < 1 or options['alpha'] <= 0 or not 0 <= options['dropout'] < 1:
        raise RecipeError(f'lora = {dict(given)} is out of range.', 'Use r >= 1, alpha > 0 and dropout in [0, 1).')
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora.layer import MultiheadAttention
    except ImportError as error:
        raise MissingExtra('peft', 'lora', 'lora') from error
    modules = dict(tower.named_modules())
    pools = tuple(f'{name}.' for name, module in modules.items() if type(module).__name__ == 'AttentionPool2d')
    attention = [name for name, module in modules.items() if isinstance(module, torch.nn.MultiheadAttention)]
    targets = options['targets'] or attention or _LAST_STAGE
    config = LoraConfig(r=options['r'], lora_alpha=options['alpha'], lora_dropout=options['dropout'], target_modules=targets)
    try:
        adapted = inject_adapter_in_model(config, tower)
    except ValueError as error:
        raise RecipeError(f'lora: targets = {targets!r} cannot be adapted: {error}.', 'Name linear, convolution or attention layers.') from error
    idle = [name for name, _ in adapted.named_parameters() if '.lora_' in name and name.startswith(pools)]
    if idle:
        raise RecipeError(
            f'lora: open_clip reads the weights of {idle[0].partition(".lora_")[0]!r} past the layer, so an adapter there would do nothing.',
            "Name other layers, or use tune='attnpool'.",
        )
    for module in adapted.modules():
        if isinstance(module, MultiheadAttention):
            setattr(module, '_restore_weights', partial(_restore_once, module, module._restore_weights))  # noqa: B010  mypy sees a method
    return adapted


def _restore_once(module: Any, restore: Callable[[], None]) -> None:
    """peft makes new Parameter objects of the frozen weights at every look at a module's name; MMEngine's log of initial weights knows parameters by
    identity, and fails. Where they are registered there is nothing to restore."""
    if 'in_proj_weight' not in module.get_base_layer()._parameters:
        restore()
