"""A changed store gives an error of ours or a correct read: never another exception, a wrong image, or a look outside.

`tools/faults/fuzz_store.py` does the same for as long as one likes, each case in a process that may crash or hang.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import REPO

sys.path.append(str(REPO / 'tools' / 'faults'))
import fuzz_store
import store_mutations

T = TypeVar('T')


class DataDraws:
    """Choices that Hypothesis makes, and makes simpler where a case fails."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def choice(self, items: Sequence[T]) -> T:
        return items[self.integer(0, len(items) - 1)]


@pytest.fixture(scope='module')
def watch() -> fuzz_store.Watch:
    return fuzz_store.Watch()


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(store_mutations.make_whole_store(tmp_path_factory.mktemp('whole') / 'store').folder)


@pytest.fixture(scope='module', autouse=True)
def _no_traces() -> Iterator[None]:
    yield
    sys.path.remove(str(REPO / 'tools' / 'faults'))


def test_nothing_of_a_whole_store_is_refused(whole: Path, watch: fuzz_store.Watch, tmp_path: Path) -> None:
    watch.start(whole, tmp_path)
    assert fuzz_store.read_everything(whole, tmp_path) == []
    assert watch.stop() == []


def test_a_look_outside_is_seen(whole: Path, watch: fuzz_store.Watch, tmp_path: Path) -> None:
    watch.start(whole)
    (tmp_path / 'x').write_text('')
    assert watch.stop() == [f'open {tmp_path}/x']


@pytest.mark.parametrize('kind', sorted(store_mutations.MUTATIONS))
def test_a_changed_store_is_read_rightly_or_refused(kind: str, whole: Path, watch: fuzz_store.Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_mutations, 'MUTATIONS', {kind: store_mutations.MUTATIONS[kind]})

    @settings(max_examples=3, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: Any) -> None:
        assert fuzz_store.one_case(DataDraws(data), whole, watch)[0] == kind

    check()
