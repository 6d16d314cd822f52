"""The learning of one class's word: its draws, loss and steps, where its vectors start, and the rows of the encoders' tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug_plugins.diffusion.adapters import DiffusersDenoiser
from synthaug_plugins.errors import ModelError
from synthaug_plugins.learning.batches import Order, mix_seed
from synthaug_plugins.learning.checkpoint import adam_tensors, load_adam_tensors
from synthaug_plugins.learning.latents import posteriors
from synthaug_plugins.learning.words_options import WordTraining
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import word_tokens
from synthaug_plugins.prompts.templates import fill

Rows = dict[str, Tensor]
"""Encoder -> vectors."""
_CURVE = 20  # points of a class's loss curve


class ClassWord:
    """The state of learning one class's word.

    Args:
        name: of the class.
        word: that stands for it in the templates.
        text: from whose tokens its vectors start.
        images: (H, W, 3) uint8, to learn from.
        model: loaded; it knows the word.
        options: see `WordTraining`.
        device, dtype: of the model.

    Attributes:
        rows: encoder -> the word's vectors, which learn.
        ids: encoder -> their tokens.
        steps: how many are done.
    """

    def __init__(
        self,
        name: str,
        word: str,
        text: str,
        images: Iterable[np.ndarray],
        model: TextModel,
        options: WordTraining,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name, self.options, self.device, self.model = name, options, device, model
        o = options
        self.rows: Rows = {}
        self.ids: dict[str, list[int]] = {}
        for e, table in self.model.tables().items():
            tokenizer = self.model.tokenizer(e)
            self.ids[e] = tokenizer.convert_tokens_to_ids(word_tokens(word, o.vectors))
            said = tokenizer(text, add_special_tokens=False).input_ids
            self.rows[e] = first_rows(table.weight[said].float(), o.vectors).requires_grad_()
        self.tokens = self.model.tokenise([fill(template, word) for template in o.templates])
        self.mean, self.deviation = posteriors(self.model, images, o.fit, self.device, o.hflip > 0)
        self.count = len(self.mean) // (2 if o.hflip > 0 else 1)
        self.order = Order(mix_seed(o.seed, name), np.zeros(self.count), class_balance=False)
        self.optimizer = torch.optim.AdamW(self.rows.values(), lr=o.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=o.weight_decay)
        self.generator = torch.Generator(self.device)
        self.losses = torch.zeros(o.steps, device=self.device)
        self.steps = 0
        # float16 loses gradients as small as those of a mean over all pixels.
        self.scale = float(self.mean[0].numel()) if dtype == torch.float16 else 1.0

    def step(self, denoiser: DiffusersDenoiser) -> Tensor:
        """One optimizer step; its loss, a 0-dim tensor on the device."""
        o, draws = self.options, self._draw(denoiser)
        size, loss = o.batch_size // o.accumulation, torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for part in (slice(i, i + size) for i in range(0, o.batch_size, size)):
            share = self._loss(denoiser, *(d[part] for d in draws)) / o.batch_size
            (share * self.scale).backward()
            loss += share.detach()
        if self.scale != 1:
            for rows in self.rows.values():
                assert rows.grad is not None
                rows.grad /= self.scale
        self.optimizer.step()
        self.losses[self.steps] = loss
        self.steps += 1
        return loss

    def _draw(self, denoiser: DiffusersDenoiser) -> tuple[Tensor, ...]:
        """Of each image of this step's batch: template, place among the latents, noise level, and noise (2, c, h, w) for posterior and level.

        For the whole batch at once, so that no draw depends on the number of parts. All but the noise is drawn on the CPU.
        """
        o = self.options
        b, g = o.batch_size, torch.Generator().manual_seed(mix_seed(o.seed, self.name, self.steps))
        template = torch.randint(len(o.templates), (b,), generator=g)
        first, last = denoiser.training_timesteps
        sigma = denoiser.sigma_of(torch.randint(first, last + 1, (b,), generator=g).double())
        mirrored = torch.rand(b, generator=g) < o.hflip
        place = self.order.indices(self.steps * b, b) + self.count * mirrored
        self.generator.manual_seed(mix_seed(o.seed, self.name, self.steps, 'noise'))  # another seed: both draw from one stream on a CPU
        noise = torch.randn((b, 2, *self.mean.shape[1:]), generator=self.generator, device=self.device)
        sigma = sigma.to(self.device, torch.float32 if self.device.type == 'mps' else torch.float64)
        return template, place.to(self.device), sigma, noise

    def _loss(self, denoiser: DiffusersDenoiser, template: Tensor, place: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Sum over images of the mean over pixels of the network's squared error."""
        unique, of = torch.unique(template, return_inverse=True)
        there = unique.to(self.device)
        told = self.model.token_conditions({e: {k: v[there] for k, v in tokens.items()} for e, tokens in self.tokens.items()})
        z = torch.addcmul(self.mean[place], self.deviation[place], noise[:, 0])
        s = sigma.to(z.dtype).reshape(-1, 1, 1, 1)
        D = denoiser(torch.addcmul(z, s, noise[:, 1]), sigma, _taken(told, of.to(self.device)))
        return ((D - z).square().flatten(1).mean(dim=1) * denoiser.loss_weight(sigma).to(z.dtype)).sum()

    def check(self, work_dir: Path) -> None:
        """Refuse (ModelError) a loss that is not finite, or vectors that are not."""
        finite = self.losses[: self.steps].isfinite()
        if bool(torch.stack([finite.all(), *(rows.isfinite().all() for rows in self.rows.values())]).all()):
            return
        bad = (~finite).nonzero().flatten().tolist()
        what = f'gave the loss {float(self.losses[bad[0]])}' if bad else 'left vectors that are not finite'
        raise ModelError(
            f'Step {bad[0] + 1 if bad else self.steps} of {self.options.steps} for the word of {self.name!r} {what}.',
            f'Lower learning_rate = {self.options.learning_rate:g} or use precision fp32; the last checkpoint in {str(work_dir)!r} is sound.',
        )

    def curve(self) -> list[float]:
        """Mean losses over twentieths of the steps."""
        return [round(float(part.mean()), 5) for part in self.losses.cpu().tensor_split(min(_CURVE, self.steps))]

    def tensors(self) -> dict[str, Tensor]:
        """Rows, losses and the optimizer's state, for a checkpoint."""
        rows = {f'rows.{e}': t for e, t in self.rows.items()}
        return {**rows, 'losses': self.losses, **adam_tensors(self.optimizer, self._names())}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Undo `tensors`."""
        with torch.no_grad():
            for e, rows in self.rows.items():
                rows.copy_(tensors[f'rows.{e}'])
        self.losses.copy_(tensors['losses'])
        load_adam_tensors(self.optimizer, self._names(), tensors)
        self.steps = steps

    def _names(self) -> dict[Tensor, str]:
        return {rows: e for e, rows in self.rows.items()}


def _taken(conditions: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Rows of conditions, in this order."""
    return {key: _taken(value, rows) if isinstance(value, Mapping) else value[rows] for key, value in conditions.items()}


def first_rows(tokens: Tensor, vectors: int) -> Tensor:
    """Where the vectors of a word start: (vectors, width), from rows (m, width) of the tokens of a text, m >= 1.

    See `WordTraining.initialise_from`. Without a mean where m <= vectors, so that a vector is then exactly that of a token.
    """
    m = len(tokens)
    if m <= vectors:
        return tokens[torch.arange(vectors, device=tokens.device) % m].clone()
    ends = [k * m // vectors for k in range(vectors + 1)]
    return torch.stack([tokens[a:b].mean(dim=0) for a, b in pairwise(ends)])


@contextmanager
def rows_in_tables(tables: Mapping[str, torch.nn.Embedding], ids: Mapping[str, Sequence[int]], rows: Mapping[str, Tensor]) -> Iterator[None]:
    """Let `rows` stand in for rows of the text encoders' tables, with gradients. The tables themselves stay as they are, and get none.

    Args:
        tables: encoder -> table.
        ids: encoder -> the consecutive tokens whose rows are replaced.
        rows: encoder -> (len(ids), width) float32.
    """

    def hook(first: int, replacing: Tensor) -> Any:
        def replaced(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            places = inputs[0] - first
            ours = (places >= 0) & (places < len(replacing))
            return torch.where(ours[..., None], replacing.to(output.dtype)[places.clamp(0, len(replacing) - 1)], output)

        return replaced

    with ExitStack() as stack:
        for encoder, table in tables.items():
            first = ids[encoder][0]
            assert list(ids[encoder]) == list(range(first, first + len(ids[encoder])))
            stack.callback(table.register_forward_hook(hook(first, rows[encoder])).remove)
        yield
