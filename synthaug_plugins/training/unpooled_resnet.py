"""A ResNet between that for thumbnails and that for photographs."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones.resnet import ResNet
from torch import nn

from synthaug_plugins.registry import MODELS


@MODELS.register_module()
class UnpooledResNet(ResNet):
    """MMPretrain's ResNet with a 7 x 7 stem of stride 2 and no pooling after it: of 96 x 96 pixels it makes 6 x 6 features, not 3 x 3.

    Weights of a ResNet fit it by name. For 32 x 32 pixels there is `ResNet_CIFAR`, for 224 and more the ResNet itself.

    Args:
        depth: 18, 34, 50, 101 or 152.
        **options: further ones of MMPretrain's ResNet.
    """

    def __init__(self, depth: int, **options: Any) -> None:
        super().__init__(depth, **options)
        self.maxpool = nn.Identity()
