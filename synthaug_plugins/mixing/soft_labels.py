"""Soft labels out of a store's columns: class probabilities, or a teacher's logits at a temperature.

With the target t = (1 - blend) * one_hot(y) + blend * q, cross-entropy -sum_k t_k log softmax(z)_k is linear in t and so equals
(1 - blend) * CE(z, y) + blend * (-sum_k q_k log softmax(z)_k): with q = softmax(z_T / T) this is the SCE loss of He et al.
(ICLR 2023), blend being its lambda. The teacher alone is divided by T, and there is no factor T^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.store.table import is_list

_LOGITS, _CLASSES = '_logits', '_classes'
_KEYS = ('column', 'blend', 'temperature')
_PART = 65536


@dataclass(frozen=True)
class SoftLabels:
    """How to train on a column.

    Attributes:
        column: lists of class probabilities, or of logits if there is a temperature.
        blend: share of the soft label in the target, 0 to 1; the rest is the hard label.
        temperature: T that logits are divided by before the softmax, or None for probabilities.
    """

    column: str
    blend: float = 1.0
    temperature: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The column, and the one that may hold its labels, where a teacher's largest logits alone were stored."""
        return (self.column, self.column.removesuffix(_LOGITS) + _CLASSES)

    def target(self, label: int, probabilities: np.ndarray) -> np.ndarray:
        """(1 - blend) * one_hot(label) + blend * probabilities: (K,) float32, a new array."""
        target = np.float32(self.blend) * probabilities
        target[label] += np.float32(1 - self.blend)
        return target


def check_soft_labels(given: Mapping[str, Any] | None) -> SoftLabels | None:
    """The checked `dict(column=..., blend=1.0, temperature=None)` of a recipe; None for None.

    Raises:
        RecipeError: no column, an unknown key, a blend outside [0, 1], a temperature that is not positive.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or not isinstance(given.get('column'), str):
        raise RecipeError(f'soft_labels = {given!r} names no column.', "Write soft_labels=dict(column='teacher_logits', blend=0.5, temperature=2.0).")
    for key in given:
        if key not in _KEYS:
            raise RecipeError(f'soft_labels has no key {key!r}.', nearest(key, _KEYS))
    blend, temperature = given.get('blend', 1.0), given.get('temperature')
    if isinstance(blend, bool) or not isinstance(blend, int | float) or not 0 <= blend <= 1:
        raise RecipeError(f'soft_labels: blend = {blend!r} is outside [0, 1].', 'Use 1 for the soft label alone, 0 for the hard one.')
    if temperature is not None and (isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float('inf')):
        raise RecipeError(f'soft_labels: temperature = {temperature!r} is not a positive number.', 'Use 2.0 as He et al. do; 1.0 leaves logits as they are.')
    return SoftLabels(given['column'], float(blend), None if temperature is None else float(temperature))


@dataclass(frozen=True)
class SoftTargets:
    """Class probabilities of M records.

    Attributes:
        values: (M, k) float32, rows that sum to 1.
        classes: (M, k) whole numbers, the label of each value; None where k = K and the order is that of the labels.
        n_classes: K.
    """

    values: np.ndarray
    classes: np.ndarray | None
    n_classes: int

    def of(self, row: int) -> np.ndarray:
        """Probabilities of one record: (K,) float32; 0 for classes that its top k leave out."""
        if self.classes is None:
            return self.values[row]
        dense = np.zeros(self.n_classes, np.float32)
        dense[self.classes[row]] = self.values[row]
        return dense

    def take(self, rows: np.ndarray) -> SoftTargets:
        """Those of some records, in that order."""
        return SoftTargets(self.values[rows], None if self.classes is None else self.classes[rows], self.n_classes)


def read_soft_targets(table: pa.Table, options: SoftLabels, n_classes: int, known: Callable[[], Iterable[str]] | None = None) -> SoftTargets:
    """The soft labels of selected records; `known` says which columns there are, to offer them where one is missing.

    Logits become softmax(z / T). Where a teacher's k largest were stored, their labels stand in the column that ends in
    '_classes' instead of '_logits'; the softmax goes over these k and all other classes have probability 0.

    Raises:
        RecipeError: a column that is missing, holds no lists, or lists of a wrong length; nulls; NaN; probabilities that do not
            sum to 1; labels that are no classes, or repeated; probabilities where a temperature asks for logits, or the other way round.
    """
    name = options.column
    if name not in table.column_names:
        raise RecipeError(f'soft_labels: the store has no column {name!r}.', nearest(name, table.column_names if known is None else known()))
    if options.temperature is None:
        values = _matrix(table, name, n_classes).astype(np.float32)
        if not _are_probabilities(values):
            raise RecipeError(
                f'soft_labels: the lists in {name!r} are not probabilities that sum to 1.', 'Score the store again; if they are logits, add temperature=2.0.'
            )
        return SoftTargets(values, None, n_classes)
    classes_name = options.columns[1]
    classes = _matrix(table, classes_name, None) if classes_name in table.column_names and classes_name != name else None
    logits = _matrix(table, name, None if classes is not None else n_classes, classes_name)
    if not np.isfinite(logits).all():
        raise RecipeError(f'soft_labels: {name!r} holds logits that are not finite.', 'Score the store again.')
    if classes is None and len(logits) and _are_probabilities(logits):
        raise RecipeError(f'soft_labels: {name!r} holds probabilities, and temperature divides logits.', 'Leave temperature out.')
    if classes is not None:
        _check_classes(classes, logits, classes_name, n_classes)
    return SoftTargets(_softened(logits, options.temperature), classes, n_classes)


def _softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature): (M, k) float32. In parts: a million records of a thousand classes in double precision take 8 GB."""
    values = np.empty(logits.shape, np.float32)
    for start in range(0, len(logits), _PART):
        z = logits[start : start + _PART].astype(np.float64)
        z = np.exp((z - z.max(1, keepdims=True)) / temperature)
        values[start : start + _PART] = z / z.sum(1, keepdims=True)
    return values


def _are_probabilities(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all() and np.abs(values.sum(1, dtype=np.float64) - 1).max(initial=0) <= 1e-3)


def _check_classes(classes: np.ndarray, logits: np.ndarray, name: str, n_classes: int) -> None:
    if classes.shape != logits.shape or not np.issubdtype(classes.dtype, np.integer):
        raise RecipeError(f'soft_labels: {name!r} does not hold one label per logit.', 'Score the store again.')
    if classes.min(initial=0) < 0 or classes.max(initial=0) >= n_classes:
        raise RecipeError(f'soft_labels: {name!r} holds labels outside the {n_classes} classes.', 'Score the store again.')
    ordered = np.sort(classes, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise RecipeError(f'soft_labels: {name!r} names a class twice for one record.', 'Score the store again.')


def _matrix(table: pa.Table, name: str, length: int | None, classes_name: str = '') -> np.ndarray:
    """A column of lists of one length (`length`, if given) as (M, length) array."""
    column = table[name].combine_chunks()
    kind = column.type
    if not is_list(kind):
        raise RecipeError(f'soft_labels: the column {name!r} holds {kind}, not lists.', 'Give a column with one number per class in every record.')
    if column.null_count:
        raise RecipeError(f'soft_labels: {column.null_count} selected records have no {name!r}.', f"Score them first, or add '{name} is not null' to select.")
    lengths = set(pc.unique(pc.list_value_length(column)).to_pylist())
    if len(lengths) > 1 or (length is not None and lengths - {length}):
        top_k = f' If they are the largest logits only, their labels must stand in {classes_name!r}.' if classes_name else ''
        raise RecipeError(f'soft_labels: the lists in {name!r} do not all have {length or "as many"} entries.', f'Score the store again.{top_k}')
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, length or 0)
