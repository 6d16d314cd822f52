"""What a few-shot study refuses before anything loads or is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.few_shot import Shots
from synthaug_plugins.store.selection import select as select_records
from synthaug_plugins.store.store import Store


def check_numbers(shots: Sequence[int], seeds: Sequence[int], lr_scales: Sequence[float], steps: int | None, jobs: int) -> None:
    """Refuse (RecipeError) numbers that are out of range or repeated."""
    for name, values in (('shots', shots), ('seeds', seeds), ('lr_scales', lr_scales)):
        if not values or len(set(values)) < len(values):
            raise RecipeError(f'{name} = {list(values)} is empty or repeats a number.', 'Write them like 1,2,4,8,16.')
    for name, value in (('steps', steps), ('jobs', jobs)):
        if value is not None and value < 1:
            raise RecipeError(f'{name} = {value} is below 1.', 'Use a whole number of at least 1.')
    if not all(0 < scale < float('inf') for scale in lr_scales):
        raise RecipeError(f'lr_scales = {list(lr_scales)} are not all positive numbers.', 'Write them like 1,10.')
    if steps is not None and steps < 2:
        raise RecipeError(f'steps = {steps} cannot be shared by two phases.', 'Use at least 2.')


def records_of(store: str | Path | None, select: str | None, classes: Sequence[str]) -> tuple[int, set[str | None] | None]:
    """Records that are selected, checked against the classes, and the images that they started from, None if all are from nothing; 0 without a store."""
    if store is None:
        if select is not None:
            raise RecipeError(f'--where {select!r} chooses records of a store, and none is given.', 'Add --store FOLDER.')
        return 0, None
    opened = Store.open(store)
    opened.check_classes(classes)
    table = select_records(opened, select).table
    return table.num_rows, None if table['source'].null_count == table.num_rows else set(table['source'].unique().to_pylist())


def refuse_foreign_sources(sources: set[str | None], draws: Mapping[tuple[int, int], Shots], store: str) -> None:
    """Refuse (DataError) a store that a draw could not train on: variants of images that are no shots of a run are left out of it."""
    if None in sources:
        return
    for (k, seed), drawn in draws.items():
        for name, ids in drawn.train.items():
            if sources.isdisjoint(ids):
                raise DataError(
                    f'The store {store!r} holds no variant of the shots of {name!r} with --shots {k} and seed {seed}.',
                    'Make it from all of train/, or name the --shots and --seeds that it was made from; with another draw a run leaves its images out.',
                )
