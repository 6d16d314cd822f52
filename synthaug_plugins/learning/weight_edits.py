"""Weights of a network that can be trained beside the original ones, and switched on and off: low-rank or whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from synthaug_plugins.errors import ModelError, RecipeError, nearest
from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.models.erasure import KINDS, lora_tensors, low_rank

METHODS: dict[str, Callable[[Sequence[str]], bool]] = {
    'esd-x': lambda path: 'attn2' in path,
    'esd-x-strict': lambda path: 'attn2' in path and ('to_k' in path or 'to_v' in path),
    'esd-u': lambda path: 'attn2' not in path,
    'full': lambda path: True,
    'selfattn': lambda path: 'attn1' in path,
}
"""Which layers are edited, by the parts of their dotted path: cross-attention, its keys and values, all but cross-attention, all, self-attention."""


def edited_names(network: nn.Module, method: str, kind: str) -> list[str]:
    """Names of the parameters that a method edits, in the network's order.

    Args:
        network: a U-Net of diffusers, as it was loaded.
        method: one of `METHODS`.
        kind: 'lora' edits the weights of linear layers and convolutions, 'full' all parameters, biases and normalisations among them.

    Raises:
        RecipeError: an unknown method or kind.
        ModelError: the network has no such layer.
    """
    if method not in METHODS:
        raise RecipeError(f'method = {method!r} is unknown.', nearest(str(method), METHODS))
    if kind not in KINDS:
        raise RecipeError(f'weights = {kind!r} is unknown.', nearest(str(kind), KINDS))
    found = []
    for layer, module in network.named_modules():
        if METHODS[method](layer.split('.')):
            own = [f'{layer}.{name}' for name, _ in module.named_parameters(recurse=False)]
            simple = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
            found += own if kind == 'full' else [f'{layer}.weight'] if simple else []
    if not found:
        raise ModelError(f'method = {method!r}: the network has no such layers.', "Use 'full'.")
    return found


class _Edit(nn.Module):
    """In place of a parameter W0: W0 itself, or while the switch is on what was learned."""

    def __init__(self, switch: SimpleNamespace) -> None:
        super().__init__()
        self.switch = switch

    def reset(self, W0: Tensor, seed: int) -> None:
        """Start from W0."""
        raise NotImplementedError

    def edited(self, W0: Tensor) -> Tensor:
        """What was learned, in the dtype of W0."""
        raise NotImplementedError

    def forward(self, W0: Tensor) -> Tensor:
        return self.edited(W0) if self.switch.on else W0


class _LowRank(_Edit):
    """W0 + B A with A and B in float32."""

    def __init__(self, W0: Tensor, rank: int, switch: SimpleNamespace) -> None:
        super().__init__(switch)
        ones = [1] * (W0.ndim - 2)
        self.A = nn.Parameter(torch.empty(rank, *W0.shape[1:], dtype=torch.float32, device=W0.device))
        self.B = nn.Parameter(torch.empty(W0.shape[0], rank, *ones, dtype=torch.float32, device=W0.device))

    def reset(self, W0: Tensor, seed: int) -> None:
        """B = 0, so that the edited weight is W0; A as uniform as a linear layer starts: |a| <= 1 / sqrt(inputs)."""
        bound = 1 / math.sqrt(self.A[0].numel())
        start = torch.rand(self.A.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.A.copy_((2 * start - 1) * bound)
            self.B.zero_()

    def edited(self, W0: Tensor) -> Tensor:
        return low_rank(W0, self.A, self.B)


class _Whole(_Edit):
    """A weight of its own, float32, rounded to the dtype of W0."""

    def __init__(self, W0: Tensor, switch: SimpleNamespace) -> None:
        super().__init__(switch)
        self.W = nn.Parameter(W0.float().clone())

    def reset(self, W0: Tensor, seed: int) -> None:
        """W = W0; nothing is random."""
        with torch.no_grad():
            self.W.copy_(W0)

    def edited(self, W0: Tensor) -> Tensor:
        return self.W.to(W0.dtype)


class WeightEdits:
    """Edited weights of a network, which itself stays as it is: outside of `on` it runs with its own weights.

    Each weight is worked out from the original one whenever a layer asks for it (torch's parametrizations), so the network's own weights exist
    once, gradients reach the edits through any precision, and gradient checkpointing works. The edits are float32.

    Args:
        network: its parameters take no gradients.
        names: of the parameters to edit, see `edited_names`.
        kind: 'lora' or 'full'.
        rank: of 'lora'.

    Attributes:
        parameters: what is trained, by name. Lasting objects, whose values `reset` renews.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], kind: str, rank: int = 4) -> None:
        self._switch = SimpleNamespace(on=False)
        self._network, self._edits = network, dict[str, _Edit]()
        for name in names:
            layer, _, parameter = name.rpartition('.')
            W0 = network.get_parameter(name)
            self._edits[name] = _LowRank(W0, rank, self._switch) if kind == 'lora' else _Whole(W0, self._switch)
            parametrize.register_parametrization(network.get_submodule(layer), parameter, self._edits[name], unsafe=True)
        self.parameters: dict[str, Tensor] = {f'{name}.{part}': p for name, edit in self._edits.items() for part, p in edit.named_parameters()}
        self.reset(0)

    def _original(self, name: str) -> Tensor:
        layer, _, parameter = name.rpartition('.')
        found: Tensor = self._network.get_submodule(layer).parametrizations[parameter].original  # type: ignore[index,union-attr]
        return found

    def reset(self, seed: int) -> None:
        """Start anew: the edited network equals the original one. Each layer's draw depends on the seed and its name."""
        for name, edit in self._edits.items():
            edit.reset(self._original(name), mix_seed(seed, name))

    @contextmanager
    def on(self) -> Iterator[None]:
        """The network runs with the edited weights; gradients must be taken inside too, where checkpointing runs layers again."""
        self._switch.on = True
        try:
            yield
        finally:
            self._switch.on = False

    def tensors(self) -> dict[str, Tensor]:
        """The content of an erasure's file, see `Erasures`; not a copy."""
        whole = {name: edit.W.detach() for name, edit in self._edits.items() if isinstance(edit, _Whole)}
        low = {name.removesuffix('.weight'): (edit.A.detach(), edit.B.detach()) for name, edit in self._edits.items() if isinstance(edit, _LowRank)}
        return {**whole, **lora_tensors(low)}

    def remove(self) -> None:
        """Leave the network as it was."""
        for name in self._edits:
            layer, _, parameter = name.rpartition('.')
            parametrize.remove_parametrizations(self._network.get_submodule(layer), parameter, leave_parametrized=False)


def cached() -> AbstractContextManager[None]:
    """A context in which each edited weight is worked out once: for many calls of a network whose edits do not change, all on or all off."""
    found: AbstractContextManager[None] = parametrize.cached()
    return found
