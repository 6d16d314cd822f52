"""What came of a scoring: counts and means per class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.columns import aligned
from synthaug_plugins.engine.score_run import Columns
from synthaug_plugins.store.reasons import group_reasons


@dataclass
class ClassScores:
    """What became of one class.

    Attributes:
        kept, rejected: images.
        reasons: rejected images by kind of reason.
        means: mean of every score column of numbers that are no labels; NaN where no image has one.
    """

    kept: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """A finished scoring.

    Attributes:
        name: of the scores.
        columns: the new columns.
        per_class: by class name, classes without images included.
    """

    name: str
    columns: tuple[str, ...]
    per_class: Mapping[str, ClassScores]

    @property
    def select(self) -> str:
        """The condition that takes the images that were kept."""
        return Columns(self.name).kept

    def table(self) -> str:
        """Counts and means per class, as plain text."""
        means = list(dict.fromkeys(name for one in self.per_class.values() for name in one.means))
        lines = [['class', 'kept', 'rejected', *(f'mean {name}' for name in means), 'why']]
        for name, one in self.per_class.items():
            values = [f'{one.means[m]:.4g}' if m in one.means else '-' for m in means]
            lines.append([name, str(one.kept), str(one.rejected), *values, ', '.join(f'{n} {why}' for why, n in one.reasons.items())])
        return aligned(lines, words=1)


def scored(columns: Columns, classes: Sequence[str], labels: Sequence[int], table: pa.Table) -> Scored:
    """The counts of a table of scores.

    Args:
        classes: names in label order.
        labels: of each image.
        table: as `score_run.show` returns it.
    """
    own, kept = np.asarray(labels), table[columns.kept].to_numpy()
    names = [name for name in table.column_names if name != 'id']
    numbers = {}
    for name in names:
        # The mean of labels says nothing.
        if pa.types.is_floating(table[name].type) and not name.endswith('argmax'):
            numbers[name] = pc.fill_null(table[name], math.nan).to_numpy()
    per_class = {}
    for label, name in enumerate(classes):
        mine = own == label
        reasons = Counter(table[columns.reason].filter(pa.array(mine & ~kept)).to_pylist())
        means = {}
        for column, values in numbers.items() if mine.any() else ():
            finite = values[mine & ~np.isnan(values)]
            means[column] = float(finite.mean()) if len(finite) else math.nan
        per_class[name] = ClassScores(int((mine & kept).sum()), int((mine & ~kept).sum()), group_reasons(reasons), means)
    return Scored(columns.name, tuple(names), per_class)
