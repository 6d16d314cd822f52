"""Where a store comes from, as far as it says so: models with revision and licence, real images, prompts. Nothing of the machine that made it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.store.store import Store

_KNOWN_BY = ('revision', 'sha256', 'licence')
_PATH = re.compile(r'^(?:local:)?(?:/|~|[A-Za-z]:[\\/]|\\\\|file:)')


class Model(NamedTuple):
    """A model that a store was made with.

    Attributes:
        role: its key in the recipe, dotted, such as 'generator.model'.
        name: on the hub, of its folder, or 'embedded:NAME'.
        revision: commit on the hub, or None.
        sha256: over its files, or None.
        licence: what its own card says, or None.
    """

    role: str
    name: str
    revision: str | None
    sha256: str | None
    licence: str | None


def models(store: Store) -> list[Model]:
    """The models that the store's plan names, each with its role, in the plan's order."""
    return list(_models(store.plan.recipe, ''))


def _models(value: Any, role: str) -> Iterator[Model]:
    items: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping):
        if isinstance(value.get('name'), str) and any(value.get(key) for key in _KNOWN_BY):
            yield Model(role, without_path(value['name']), *(None if value.get(key) is None else str(value[key]) for key in _KNOWN_BY))
        items = value.items()
    elif isinstance(value, list | tuple):
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return
    for key, inner in items:
        yield from _models(inner, f'{role}.{key}' if role else str(key))


def without_path(text: str) -> str:
    """A path without the folders that lead to it, which name a user and a machine; any other text as it is.

    >>> without_path('/home/ann/models/cats'), without_path('owner/name')
    ('…/cats', 'owner/name')
    """
    return '…/' + re.split(r'[\\/]', text.rstrip('/\\'))[-1] if _PATH.match(text) else text


def without_paths(value: Any) -> Any:
    """Plain JSON with `without_path` of all its texts."""
    if isinstance(value, Mapping):
        return {key: without_paths(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(v) for v in value]
    return without_path(value) if isinstance(value, str) else value


class Sources(NamedTuple):
    """Real images that a selection starts from.

    Attributes:
        used: different images that its rows name.
        given: images that the plan could start from.
        sha256: over ids and content of these; None where the plan does not say it.
    """

    used: int
    given: int
    sha256: str | None


def sources(store: Store, table: pa.Table) -> Sources | None:
    """The real images that rows of a store's index start from; None where no real image had a part."""
    used = pc.count_distinct(table['source'], mode='only_valid').as_py()
    given = len({image for part in store.plan.parts for image in part.sources})
    content = store.plan.recipe.get('sources_sha256')
    return Sources(used, given, None if content is None else str(content)) if used or given or content else None


def prompts(table: pa.Table, most: int) -> tuple[int, list[tuple[str, int]]]:
    """How many different prompts rows of an index have, and the most frequent with their numbers of images; ties in the order of the text."""
    counted = pc.value_counts(table['prompt'].drop_null().cast(pa.string()))
    pairs = sorted(zip(counted.field('values').to_pylist(), counted.field('counts').to_pylist(), strict=True), key=lambda p: (-p[1], p[0]))
    return len(pairs), pairs[:most]
