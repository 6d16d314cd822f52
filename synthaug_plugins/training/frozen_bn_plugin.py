"""`synthaug = dict(frozen_bn=dict())`: keep BatchNorm statistics while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.training.recipe_edit import add_hook, take_options

if TYPE_CHECKING:
    from mmengine.config import Config

KEY = 'frozen_bn'
OPTIONS = {
    'modules': "regular expressions for layer names, such as 'backbone'; default: all BatchNorm layers",
    'freeze_affine': 'keep their scale and shift too, default False',
}


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `frozen_bn`."""
    return (KEY,)


@hookimpl
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Add FrozenBNHook to the recipe."""
    given = take_options(options, KEY, OPTIONS)
    if given is not None:
        add_hook(cfg, {'type': 'synthaug_plugins.FrozenBNHook', **{k: v for k, v in given.items() if v is not None}})
