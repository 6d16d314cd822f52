"""The store: a folder of finished blocks, on a local or a remote disk.

```
store.json            the plan (recipe, classes, blocks), its fingerprint, and what made it
shards/00000.tar      images of a block, WebDataset layout; _info.json once all blocks are there, for timm's wds reader
index/00000.parquet   one row per tried image; its existence marks the block as finished
scores/<name>.parquet columns added later, keyed by id
cost.json             images, seconds, network evaluations and devices of each completed run
```
There is no ledger: what is published is done, what is not is redone with the same seeds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import StoreError
from synthaug_plugins.store import files, open_shards
from synthaug_plugins.store.address import place_of
from synthaug_plugins.store.card import CARD, card_text, differences, read_card
from synthaug_plugins.store.cost import RunCost, add_cost, read_cost
from synthaug_plugins.store.index import read_blocks
from synthaug_plugins.store.lease import Say, hold, join
from synthaug_plugins.store.place import LocalPlace, Place, partial_names
from synthaug_plugins.store.plan import Block, Plan, check_class_names
from synthaug_plugins.store.reasons import group_reasons
from synthaug_plugins.store.scores import SCORE_KEYS, join_scores, read_made_by, score_files, score_names, write_scores
from synthaug_plugins.store.shard import KEPT, Row, index_name, read_index, shard_name, write_block
from synthaug_plugins.store.table import INDEX_SCHEMA, column_names

FOLDERS = ('shards', 'index', 'scores')
INFO_FILE = 'shards/_info.json'
_INDEX_FILE = re.compile(r'\d{5,}\.parquet')


class Store:
    """A store folder. Make one with `Store.create`, read one with `Store.open`.

    Attributes:
        folder: where it is: a local path, or the address of a folder on a remote disk.
        place: the same, to be asked for files.
        plan: the plan that it follows.
        classes: class names; a label is an index into them.
        made_by: model, licence and versions, as noted when it was created; `cost` holds the sums of `add_cost`.
    """

    def __init__(self, place: Place, plan: Plan, made_by: Mapping[str, Any]) -> None:
        self.place, self.plan, self.made_by = place, plan, dict(made_by)
        self.folder: Path | str = place.folder if isinstance(place, LocalPlace) else place.given
        self._check: Callable[[], None] = _nothing  # that this process's run may still write
        self._left: set[int] | None = None  # blocks that this process still has to publish
        if cost := read_cost(place):
            self.made_by['cost'] = cost

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.plan.classes

    @classmethod
    def create(cls, folder: str | Path, plan: Plan, made_by: Mapping[str, Any]) -> Store:
        """Start a store in a new or empty folder, or go on with the one that the same plan started there.

        A resumed store keeps its first `made_by`.

        Raises:
            StoreError: the folder holds something else, or a store of another plan (it says what differs); nothing is
                touched then. Or the folder cannot be written.
        """
        place = place_of(folder)
        check_class_names(plan.classes)
        if (store := cls.started(folder, plan)) is not None:
            store._write_info()
            return store
        if not place.write_first(CARD, card_text(plan, made_by).encode()):
            return cls.create(folder, plan, made_by)  # another process was quicker: go on with its store
        return cls(place, plan, made_by)

    @classmethod
    def started(cls, folder: str | Path, plan: Plan) -> Store | None:
        """The store that the same plan started in a folder; None where `create` would start it. Nothing is written.

        Raises:
            StoreError: the folder holds something else, or a store of another plan (it says what differs).
        """
        place = place_of(folder)
        if not place.exists(CARD):
            _refuse_foreign(place)
            return None
        store = cls.open(folder)
        if store.plan.fingerprint != plan.fingerprint:
            lines = differences(store.plan, plan)
            more = f' and {len(lines) - 12} more' if len(lines) > 12 else ''
            raise StoreError(
                f'The store {place.given!r} was made by another recipe; these differ: {"; ".join(lines[:12])}{more}.',
                'Give another folder with --out, or set the recipe back.',
            )
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open an existing store, finished or not.

        Raises:
            StoreError: not a store, an unknown format version, or a damaged card; a remote disk that does not answer.
            MissingExtra: an address whose protocol needs a package that is not installed.
        """
        place = place_of(folder)
        return cls(place, *read_card(place))

    @staticmethod
    def is_one(folder: str | Path) -> bool:
        """Whether a folder looks like a store; it may still be damaged. Raises StoreError where a remote disk does not answer."""
        return place_of(folder).exists(CARD)

    @contextmanager
    def lock(self, what: str = 'generate', say: Say = lambda sentence: None) -> Iterator[str]:
        """Hold the right to write. On a local disk the kernel frees it when the process ends, however it ends; see `lease`.

        Args:
            what: is done, for whoever is refused meanwhile: 'generate', 'repair', 'score'.
            say: told when the lease of a run that died is taken over.

        Returns: the name of this run, for the `join` of its workers.

        Raises:
            StoreError: another process (or another `lock()` of this one) holds it; it is named.
        """
        with hold(self.place, what, say) as (run, self._check):
            try:
                yield run
            finally:
                self._check = _nothing

    @contextmanager
    def join(self, run: str) -> Iterator[None]:
        """Belong to a run that holds the lock, as a worker in another process: `publish` then refuses when the run is over.

        Raises:
            StoreError: it is over, or its driver sees another folder of this name.
        """
        with join(self.place, run) as self._check:
            try:
                yield
            finally:
                self._check = _nothing

    def check_lease(self) -> None:
        """Refuse (StoreError) to write for a run that is over: see `lock` and `join`. Holds nothing for who has not called either."""
        self._check()

    def finished(self) -> set[int]:
        """Numbers of the plan's blocks that are published."""
        found = {int(name.partition('.')[0]) for name in self.place.names('index') if _INDEX_FILE.fullmatch(name)}
        return found & {b.index for b in self.plan.blocks}

    def unfinished(self) -> list[Block]:
        """Blocks still to be made, in the plan's order."""
        done = self.finished()
        return [b for b in self.plan.blocks if b.index not in done]

    def partials(self) -> list[str]:
        """Temporary files of a killed run."""
        return partial_names(self.place, ('', *FOLDERS))

    def clean_partials(self) -> None:
        """Remove temporary files of a killed run. Call it under `lock()`: those of a running writer look the same."""
        for name in self.partials():
            self.place.remove(name)

    def publish(self, block: Block, rows: Sequence[Row], keep_rejected: bool) -> None:
        """Write a finished block (see `write_block`).

        Raises:
            StoreError: not a block of this plan, rows that do not fit it, a run that is over, or a failed write, which leaves nothing half.
        """
        if not 0 <= block.index < len(self.plan.blocks) or self.plan.blocks[block.index] != block:
            raise StoreError(f'Block {block.index} is not in the plan of {self.place.given!r}.', 'Use the blocks of store.plan.')
        self._check()
        write_block(self.place, block, rows, keep_rejected)
        open_shards.forget_open_files()
        if self._left is None:
            self._left = {b.index for b in self.unfinished()}
        self._left.discard(block.index)
        if not self._left:  # looking at the folder after every block would cost a pass over all of them each time
            self._write_info()

    def index(self, columns: Collection[str] | None = None, only: str | None = None, encoded: Sequence[str] = ()) -> pa.Table:
        """Rows of all finished blocks, in the order of the blocks.

        Columns: those of `INDEX_SCHEMA`, `shard` (int32), then score columns, null where a row has none.

        Args:
            columns, only, encoded: what to read, see `index.read_blocks`; with millions of rows ask for no more than you need.

        Raises:
            StoreError: a damaged index or scores file, or two score columns of the same name.
        """
        wanted = None if columns is None else {c.lower() for c in columns}
        scores = {file: [c for c in score_names(self.place, file) if wanted is None or c.lower() in wanted] for file in self.score_files()}
        keys = set(SCORE_KEYS) if any(scores.values()) else set()
        table = read_blocks(self.place, self.finished(), None if wanted is None else wanted | keys, only, encoded)
        self._check_labels(table)
        for file, names in scores.items():
            table = join_scores(table, self.place, file, names, self.plan.tries) if names else table
        if wanted is not None:
            table = table.select([name for name in table.column_names if name.lower() in wanted])
        return table.replace_schema_metadata(None)

    def _check_labels(self, table: pa.Table) -> None:
        """Refuse (StoreError) labels that no class of this store has: as an index into a list, -1 would be the last one."""
        highest = pc.max(table['label']).as_py() if 'label' in table.column_names else None
        if highest is not None and highest >= len(self.classes):
            what = f'The store {str(self.folder)!r} has {len(self.classes)} classes and an image of the label {highest}.'
            raise StoreError(what, 'Run verify, then repair.')

    def counts(self) -> dict[str, dict[str, Any]]:
        """Per class name: `kept`, `rejected`, `target` (counts) and `reasons`, rejected counts by kind of reason (see `group_reasons`)."""
        result: dict[str, dict[str, Any]] = {name: {'kept': 0, 'rejected': 0, 'target': 0, 'reasons': {}} for name in self.classes}
        for part in self.plan.parts:
            result[part.class_name]['target'] += part.target
        tried: Counter[tuple[int, str | None]] = Counter()
        for number in self.finished():
            part = read_index(self.place, number, ['label', 'reason'])
            self._check_labels(part)
            tried.update(zip(part['label'].to_pylist(), part['reason'].to_pylist(), strict=True))
        for (label, reason), n in tried.items():
            entry = result[self.classes[label]]
            entry['kept' if reason is None else 'rejected'] += n
            if reason is not None:
                entry['reasons'][reason] = n
        for entry in result.values():
            entry['reasons'] = group_reasons(entry['reasons'])
        return result

    def score_files(self) -> list[str]:
        """The files of added score columns, sorted by name."""
        return score_files(self.place)

    def scores_made_by(self, name: str) -> dict[str, Any] | None:
        """What made the scores `name`, as `add_scores` was told; None if it was not. Raises StoreError if there are none."""
        return read_made_by(self.place, name)

    def add_scores(self, name: str, table: pa.Table, made_by: Mapping[str, Any] | None = None) -> None:
        """Write columns for images that are there already; a file of the same name is replaced. No image is touched.

        Args:
            name: of the file: letters, digits, `-` and `_`.
            table: a column `id` and one or more columns with new names; images left out get null.
            made_by: plain JSON that says what made them, kept in the file.

        Raises:
            StoreError: an unsafe name, unknown or repeated ids, or a column that the store has already.
        """
        known: dict[str, str] = {}
        for number in sorted(self.finished()):
            part = read_index(self.place, number, SCORE_KEYS)
            known.update(zip(part['id'].to_pylist(), part['sha256'].to_pylist(), strict=True))
        self._check()  # on a remote disk, which cannot lock
        write_scores(self.place, name, table, known, self.score_column_names(besides=name), made_by)

    def score_column_names(self, besides: str | None = None) -> set[str]:
        """Names of the score columns that the store has, those of the scores file `besides` aside."""
        taken = {c for file in self.score_files() if file != f'scores/{besides}.parquet' for c in score_names(self.place, file)}
        for number in self.finished():
            taken.update(column_names(self.place, index_name(number))[len(INDEX_SCHEMA) :])
        return taken

    def add_cost(self, run: RunCost) -> None:
        """Note what a completed run took."""
        self.made_by['cost'] = add_cost(self.place, run)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse class names that are not this store's, in its order.

        Raises:
            StoreError: it says whether names differ or only their order.
        """
        mine, other = list(self.classes), list(classes)
        if mine == other:
            return
        if sorted(mine) == sorted(other):
            at = next(i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
            raise StoreError(
                f'The class order differs: label {at} is {mine[at]!r} in the store {self.place.given!r} and {other[at]!r} here.',
                'For folders of images, whose labels are positions of the sorted names, generate the store with --cfg-options '
                f'"classes={other[:12]!r}{" and so on" if len(other) > 12 else ""}"; for annotation files, set metainfo.classes of all loaders to the '
                "store's order and number the labels by it.",
            )
        only_store, only_here = [c for c in mine if c not in other], [c for c in other if c not in mine]
        raise StoreError(
            f'The class names differ: only in the store {self.place.given!r}: {only_store[:8]}; only here: {only_here[:8]}.',
            'Train with the classes that the store was made for, or generate a store for these.',
        )

    def info_text(self) -> str:
        """What timm's `wds/` reader wants to know: the shards that hold kept images, and how many each."""
        lengths = {}
        for number in sorted(self.finished()):
            kept = pc.sum(pc.equal(read_index(self.place, number, ['verdict'])['verdict'], KEPT)).as_py()
            if kept:
                lengths[shard_name(number).rpartition('/')[2]] = kept
        split = {'name': 'train', 'num_samples': sum(lengths.values()), 'filenames': list(lengths), 'shard_lengths': list(lengths.values())}
        return json.dumps({'name': self.place.label, 'version': '1', 'splits': {'train': split}}, indent=1) + '\n'

    def finish(self) -> None:
        """Tidy up after workers, all of which are gone: a killed one leaves temporary files. Call it under `lock()`."""
        self.clean_partials()
        self._write_info()

    def _write_info(self) -> None:
        """Once per finished store; writing it per block would cost a pass over all of them each time."""
        if not self.unfinished() and not self.place.exists(INFO_FILE):
            self.place.write_whole(INFO_FILE, self.info_text().encode())


def _nothing() -> None:
    pass


def _refuse_foreign(place: Place) -> None:
    """Accept a missing or empty folder, or one where a killed `create` left empty folders or a partial card; else StoreError."""
    for name in place.names():
        ours = name.startswith(f'{files.PARTIAL}{CARD}-') or (name.rstrip('/') in FOLDERS and name.endswith('/') and not place.names(name))
        if not ours and not place.exists(CARD):  # another process may have started this store just now
            raise StoreError(
                f'The folder {place.given!r} is not empty and not a store: it holds {name.rstrip("/")!r}.', 'Give a new or empty folder; nothing was touched.'
            )
