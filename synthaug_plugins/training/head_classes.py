"""Whether the stores that a recipe trains on have as many classes as its head: seen in the config, before anything loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.training.recipe_edit import preprocessor


def check_head(cfg: Any) -> None:
    """Refuse (RecipeError) a recipe whose head has another number of classes than a store that it trains on: with more, some never have an image, and
    with fewer a label has no output. Beside real images only the latter: there the recipe may have its reasons for a wide head, with or without a store.
    A recipe without such a head (self-supervised, say) needs no classes; a store that is not there is refused when it is opened."""
    from synthaug_plugins.store.store import Store  # loads what `synthaug --help` can do without

    wanted = head_classes(cfg)
    dataset = (cfg.get('train_dataloader') or {}).get('dataset')
    if wanted is None or not isinstance(dataset, Mapping):
        return
    alone = set(stores_of(dataset, beside_real=False))
    for folder in dict.fromkeys(stores_of(dataset)):
        if Store.is_one(folder) and ((n := len(Store.open(folder).classes)) > wanted or (n < wanted and folder in alone)):
            raise RecipeError(
                f'The store {folder!r} has {n} classes, and the recipe has a head for {wanted} (model.head.num_classes).',
                f"Give a store of {wanted} classes, or set model.head.num_classes={n} (on a store alone: synthaug.train_on.num_classes='store').",
            )


def head_classes(cfg: Any) -> int | None:
    """The number of classes of the recipe's head (of the model itself, where a library makes both), or None where it says none."""
    model = cfg.get('model') or {}
    number = (model.get('head') or model).get('num_classes')
    return number if isinstance(number, int) else None


def set_head_classes(cfg: Any, n: int) -> None:
    """Give head, its loss and the preprocessor `n` classes, wherever they say a number of them.

    Raises:
        RecipeError: the head says none.
    """
    if head_classes(cfg) is None:
        raise RecipeError("synthaug: train_on: num_classes='store' needs a head with num_classes, and this recipe has none.", 'Leave num_classes out.')
    head = cfg['model'].get('head') or cfg['model']
    for part in (head, head.get('loss') or {}, preprocessor(cfg)):
        if part.get('num_classes') is not None:
            part['num_classes'] = n


def stores_of(dataset: Mapping[str, Any], beside_real: bool = True) -> Iterator[str]:
    """The folders of the stores that a training set's config names, in wrappers too: of StoreDataset and, with `beside_real`, of MixedDataset."""
    if isinstance(dataset.get('store'), str):
        yield dataset['store']
    if beside_real:
        yield from (spec['store'] for spec in dataset.get('stores') or [])
    for part in (dataset.get('real'), dataset.get('dataset'), *(dataset.get('datasets') or [])):
        if isinstance(part, Mapping):
            yield from stores_of(part, beside_real)
