"""What tells a store from others, for results that were found from it: its plan, and the images that it holds."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from synthaug_plugins.store.index import sorted_by_id
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store


class Identity(NamedTuple):
    """Which store it is.

    Attributes:
        fingerprint: of its plan.
        content_sha256: over the ids and hashes of its kept images, in the order of the ids. A plan that is made again on another device, or with another
            version of a library, makes other bytes; so does a store that was unfinished before.
    """

    fingerprint: str
    content_sha256: str

    def __str__(self) -> str:
        return f'fingerprint {self.fingerprint[:12]}, content {self.content_sha256[:12]}'


def identity(store: Store) -> Identity:
    """Of a store as it is now; reads two columns of its index.

    Raises:
        StoreError: a damaged index.
    """
    table = sorted_by_id(store.index(['id', 'sha256'], KEPT))
    digest = hashlib.sha256()
    for rows in table.to_batches():
        digest.update(''.join(f'{row["id"]} {row["sha256"]}\n' for row in rows.to_pylist()).encode())
    return Identity(store.plan.fingerprint, digest.hexdigest())
