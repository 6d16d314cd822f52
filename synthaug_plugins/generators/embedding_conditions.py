"""Learned embeddings of real images, perturbed, in place of prompts and labels (Diffusion Inversion; Zhou et al. 2023, arXiv 2305.15316)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthaug_plugins.errors import DataError, ModelError, RecipeError, nearest
from synthaug_plugins.generators.conditions import Conditions
from synthaug_plugins.generators.guidance import finite_json
from synthaug_plugins.generators.guidance_scale import GuidanceScale, guidance_weights
from synthaug_plugins.generators.strength import numbers
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Part, Request, purpose_seed, request_share

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.diffusion import Denoiser
    from synthaug_plugins.diffusion.guidance import Term

UNCONDITIONAL = ('all', 'class', 'group', 'empty')
PARTNERS = ('class', 'all')
MIXED_LABEL = 'mixed_label'
"""The score column of class probabilities, where partners may be of another class."""


class EmbeddingConditions(Conditions):
    """The embedding of each request's real image, perturbed, and guidance away from a mean of embeddings.

    A request draws lambda, alpha and guidance scale s from their pools, and a partner where alpha > 0. With c the embedding of its source it is
    told c' = c + alpha (c_partner - c) + lambda n, n unit normal for every element, and is denoised to D(m) + s (D(c') - D(m)), m a mean: in the
    paper's words (1 + w) D(c') - w D(m) with s = 1 + w. Pooled vectors are perturbed and averaged alike.

    Args:
        model: which.
        embeddings: what was learned for it.
        lambdas, alphas, guidance_scales: the pools; see `DiffusionInversion`, as for all that follows.

    Attributes:
        embeddings: as given.

    Raises:
        RecipeError: a pool that is empty, repeats a value or leaves its range; an unknown choice; a scale other than 1 for a few-step model.
    """

    def __init__(
        self,
        model: DenoiserModel | TextModel,
        embeddings: Embeddings,
        lambdas: float | Sequence[float],
        alphas: float | Sequence[float],
        guidance_scales: float | Sequence[float],
        guidance_interval: Sequence[float] | None,
        unconditional: str,
        group_size: int,
        partners: str,
    ) -> None:
        from synthaug_plugins.diffusion.guidance import check_strength

        self.model: DenoiserModel | TextModel = model
        self.image_shape = (3, *model.image_size) if isinstance(model, TextModel) else model.size
        self.embeddings = embeddings
        self._lambdas = _pool('lambdas', lambdas, math.inf, 'Published runs have 0.1; 0 is no noise.')
        self._alphas = _pool('alphas', alphas, 1, 'It is the share of the partner: published runs have 0.1; 0 is no partner.')
        self._scales = _pool('guidance_scales', guidance_scales, math.inf, 'Published runs have 2; 1 is no guidance.')
        if isinstance(model, TextModel):
            for scale in self._scales:
                GuidanceScale(scale, model)  # refuses what a few-step model cannot do
        interval = (0.0, math.inf) if guidance_interval is None else guidance_interval
        check_strength('guidance_interval', 0.0, interval)
        self._interval = (float(interval[0]), float(interval[1]))
        for key, value, known in (('unconditional', unconditional, UNCONDITIONAL), ('partners', partners, PARTNERS)):
            if value not in known:
                raise RecipeError(f'{key} = {value!r} is unknown.', nearest(str(value), known))
        if group_size < 1:
            raise RecipeError(f'group_size = {group_size} is no number of images.', 'Published runs have 100.')
        self._unconditional, self._group_size, self._partners = unconditional, group_size, partners
        self._sources: dict[str, tuple[str, ...]] = {}  # by class, in label order
        self._all: list[str] = []  # the same, one class after the other
        self._first: dict[str, int] = {}  # where a class begins there
        self._means: dict[Hashable, tuple[Tensor, Tensor | None]] = {}

    def check(self, classes: Sequence[str], real_images: RealImages | None = None) -> None:
        """See `Conditions.check`: every image has an embedding that was learned for it as it is now, and every image that mixes has a partner."""
        if real_images is None:
            raise RecipeError('Embeddings are those of real images, but the recipe names none.', 'Add --data FOLDER with one folder per class.')
        self._sources, self._all = {name: real_images.ids(name) for name in classes}, []
        for name, ids in self._sources.items():
            self._first[name] = len(self._all)
            self._all += ids
        self._means.clear()
        self.model.check_weights()
        if self._unconditional == 'empty' and isinstance(self.model, DenoiserModel) and not self.model.runs_without_labels:
            what = f"unconditional = 'empty': the model {self.model.name!r} was trained without label dropout and cannot run without labels."
            raise ModelError(what, "Use 'all', the mean of all embeddings.")
        if max(self._alphas) > 0:
            self._check_partners()
        self.embeddings.check(self.model, real_images, self._all)

    def _check_partners(self) -> None:
        """Refuse (DataError) a class whose one image would have no partner."""
        for name, ids in self._sources.items():
            if len(ids if self._partners == 'class' else self._all) < 2:
                what = f'alphas = {self._alphas} mixes each image with another of its class, but the class {name!r} has one image.'
                raise DataError(what, "Add images, set alphas=0, or let partners be of any class (partners='all').")

    def prepare(self, classes: Sequence[str], say: Callable[[str], None]) -> None:
        """See `Conditions.prepare`: says so where groups are no choice of their own."""
        if self._unconditional == 'group' and max(map(len, self._sources.values())) <= self._of_group:
            say(f"unconditional = 'group': all {len(self._all)} images are one group of {self._group_size}, so it is the mean of all.")

    def identity(self) -> dict[str, Any]:
        """See `Conditions.identity`; complete after `check`."""
        low, high = self._interval
        return {
            'embeddings': self.embeddings.identity(self._all),
            'lambdas': self._lambdas,
            'alphas': self._alphas,
            'guidance_scales': self._scales,
            'guidance_interval': list(finite_json({'from': low, 'to': high}).values()),
            'unconditional': self._unconditional,
            'group_size': self._group_size if self._unconditional == 'group' else None,
            'partners': self._partners,
        }

    def tell(self, part: Part, number: int, recipe_seed: int, seed: int) -> tuple[None, dict[str, Any]]:
        """See `Conditions.tell`: what the request draws from each pool, independently, and its partner."""

        def drawn(purpose: str, pool: Sequence[float]) -> float:
            return pool[int(request_share(seed, purpose) * len(pool))]

        params: dict[str, Any] = {'lambda': drawn('lambda', self._lambdas), 'alpha': drawn('alpha', self._alphas)}
        if params['alpha'] > 0:
            params['partner'] = self._partner(part, number, request_share(seed, 'partner'))
        return None, {**params, 'guidance_scale': drawn('guidance_scale', self._scales)}

    def _partner(self, part: Part, number: int, share: float) -> str:
        """One of the other images that share in [0, 1) picks; each has the same part of it."""
        own = (part.first + number) % len(part.sources)
        others: Sequence[str] = part.sources
        if self._partners == 'all':
            own, others = self._first[part.class_name] + own, self._all
        place = int(share * (len(others) - 1))
        return others[place if place < own else place + 1]

    def cond(self, requests: Sequence[Request], device: torch.device) -> Any:
        """See `Conditions.cond`: the perturbed embeddings."""
        return self.model.embedded(*self.perturbed(requests, device))

    def perturbed(self, requests: Sequence[Request], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """c' of each request: tokens (B, K, d) float32, and pooled vectors (B, p) where the model has them. What a request gets depends on its own alone."""
        import torch

        from synthaug_plugins.diffusion import SampleNoise

        own = self._read([str(r.source) for r in requests], device)
        partners = self._read([str(r.params.get('partner', r.source)) for r in requests], device)
        sizes = [math.prod(values.shape[1:]) for values in own]
        noise = SampleNoise([purpose_seed(r.seed, 'embedding') for r in requests], (sum(sizes),), device).latents()
        alpha, lam = (torch.tensor([r.params[name] for r in requests], dtype=torch.float32, device=device) for name in ('alpha', 'lambda'))
        found = []
        for c, partner, n in zip(own, partners, noise.split(sizes, dim=1), strict=True):
            a, b = (weight.reshape(-1, *[1] * (c.ndim - 1)) for weight in (alpha, lam))
            found.append(c + a * (partner - c) + b * n.reshape(c.shape))
        return found[0], found[1] if len(found) > 1 else None

    def _read(self, ids: Sequence[str], device: torch.device) -> list[Tensor]:
        """Tokens (B, K, d), and pooled vectors (B, p) where there are any."""
        return [part.to(device) for part in self.embeddings.read(self.embeddings.find(ids)) if part is not None]

    def terms(self, requests: Sequence[Request], device: torch.device, load: Callable[[DenoiserModel], Denoiser], options: Mapping[str, Any]) -> Sequence[Term]:
        """See `Conditions.terms`: D + (s - 1) (D(c') - D(m)), each request by its own scale and mean."""
        from synthaug_plugins.diffusion import ClassifierFree

        scales = [float(r.params['guidance_scale']) for r in requests]
        if all(scale == 1 for scale in scales):
            return []
        return [ClassifierFree(guidance_weights(scales, device), uncond=self._away_from(requests, device), interval=self._interval)]

    def _away_from(self, requests: Sequence[Request], device: torch.device) -> Any:
        """The condition that guidance leads away from: one row for all, or one per request."""
        import torch

        if self._unconditional == 'empty':
            return self.model.unconditional()
        keys = [self._mean_of(r) for r in requests]
        means = [self._mean(key) for key in (keys[:1] if len(set(keys)) == 1 else keys)]
        tokens = torch.stack([tokens for tokens, _ in means]).to(device)
        pooled = torch.stack([p for _, p in means if p is not None]).to(device) if means[0][1] is not None else None
        return self.model.embedded(tokens, pooled)

    def _mean_of(self, request: Request) -> Hashable:
        """Which mean a request is led away from: requests with equal answers share it."""
        if self._unconditional == 'group':
            return bisect_left(self._sources[request.class_name], str(request.source)) // self._of_group
        return request.class_name if self._unconditional == 'class' else None

    @property
    def _of_group(self) -> int:
        """Images of each class in a group."""
        return max(1, self._group_size // len(self._sources))

    def _mean(self, which: Any) -> tuple[Tensor, Tensor | None]:
        """The mean of those embeddings, on the CPU: of the recipe's images alone, whatever else was learned beside them."""
        if which not in self._means:
            if self._unconditional == 'group':
                ids = [i for of_class in self._sources.values() for i in of_class[which * self._of_group : (which + 1) * self._of_group]]
            else:
                ids = list(self._sources[which]) if which is not None else self._all
            self._means[which] = self.embeddings.mean(self.embeddings.find(ids))
        return self._means[which]

    def judge(self, requests: Sequence[Request], images: np.ndarray) -> tuple[dict[int, str], dict[str, np.ndarray]] | None:
        """See `Conditions.judge`: class probabilities where partners may be of another class, 1 - alpha of its own and alpha of the partner's."""
        if self._partners != 'all':
            return None
        labels = np.zeros((len(requests), len(self._sources)), np.float32)
        order = {name: label for label, name in enumerate(self._sources)}
        for row, request in zip(labels, requests, strict=True):
            alpha = float(request.params['alpha'])
            row[request.label] += 1 - alpha
            row[order[str(request.params.get('partner', request.source)).split('/')[0]]] += alpha
        return {}, {MIXED_LABEL: labels}


def _pool(key: str, given: float | Sequence[float], most: float, cure: str) -> list[float]:
    """A pool's values, each of 0 to `most` and finite, or a refusal (RecipeError)."""
    values = numbers(key, given)
    for value in values:
        if not 0 <= value <= most or math.isinf(value):
            wanted = 'is no finite number of 0 or more' if math.isinf(most) else f'is outside [0, {most:g}]'
            raise RecipeError(f'{key} = {given!r}: {value:g} {wanted}.', cure)
    return values
