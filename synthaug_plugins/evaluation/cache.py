"""Runs that are done are not done again: a folder per run, named by the hash of all that decides it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.evaluation.fingerprint import run_key
from synthaug_plugins.evaluation.pool import Pool, Task
from synthaug_plugins.evaluation.protocol import Arm
from synthaug_plugins.evaluation.runs import TRAINED, test_run, testing_part, train_run, training_part
from synthaug_plugins.evaluation.statistics import options_text

if TYPE_CHECKING:
    from mmengine.config import Config

_Result = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One arm (or one candidate of its search) with the settled trainer recipe of each seed.

    Attributes:
        arm: which.
        options: those of the search that this candidate sets, by dotted key; none for an arm without a search.
        configs: seed -> recipe.
    """

    arm: Arm
    options: Mapping[str, Any]
    configs: Mapping[int, Config]

    @property
    def label(self) -> str:
        """For progress and errors: the arm's name, with the options that were searched."""
        return f'{self.arm.name} [{options_text(self.options)}]' if self.options else self.arm.name


class RunCache:
    """The cache of runs: `out/runs/<key>/result.json` for a training, `test-<key>.json` for its test.

    Args:
        out: folder of the comparison.
        pool: runs what is missing.
        progress: told a line when a run is done.
    """

    def __init__(self, out: Path, pool: Pool, progress: Callable[[str], None]) -> None:
        self.out, self.pool, self.progress = out, pool, progress
        self.listings: dict[str, str] = {}

    def key(self, side: Side, seed: int) -> str:
        """Name of the folder of a run: the hash of what decides its training."""
        return run_key(training_part(side.configs[seed]), self.listings)

    def train(self, sides: Sequence[Side], steps: int) -> list[list[_Result]]:
        """Result of every seed of every side."""
        todo = []
        for side in sides:
            for seed, cfg in side.configs.items():
                folder = self.out / 'runs' / self.key(side, seed)
                todo.append((f'{side.label}, seed {seed}', folder / TRAINED, train_run, (training_part(cfg), folder, steps)))
        results = self._run(todo, lambda r: f'{r["val"]:.1f} % on validation, {r["seconds"]:.0f} s')
        return _grouped(results, sides)

    def test(self, sides: Sequence[Side]) -> list[list[_Result]]:
        """Test result of every seed of every side."""
        todo = []
        for side in sides:
            for seed, cfg in side.configs.items():
                folder = self.out / 'runs' / self.key(side, seed)
                testing = testing_part(cfg)
                file = f'test-{run_key(testing, self.listings)}.json'
                todo.append((f'{side.label}, seed {seed}, test', folder / file, test_run, (testing, folder, file)))
        results = self._run(todo, lambda r: f'{r["top1"]:.1f} %')
        return _grouped(results, sides)

    def _run(self, todo: Sequence[tuple[str, Path, Callable[..., _Result], tuple[Any, ...]]], says: Callable[[_Result], str]) -> list[_Result]:
        """Make what is not there yet (each file once, though two sides may share it) and read everything."""
        missing: dict[Path, Task] = {}
        for label, file, function, arguments in todo:
            if not file.exists():
                missing.setdefault(file, Task(label, file.parent / 'log.txt', function, arguments))
        count = iter(range(1, len(missing) + 1))
        self.pool.run(list(missing.values()), lambda label, result: self.progress(f'[{next(count)}/{len(missing)}] {label}: {says(result)}'))
        return [json.loads(file.read_text(encoding='utf-8')) for _, file, _, _ in todo]


def _grouped(results: Iterable[_Result], sides: Sequence[Side]) -> list[list[_Result]]:
    results = iter(results)
    return [[next(results) for _ in side.configs] for side in sides]
