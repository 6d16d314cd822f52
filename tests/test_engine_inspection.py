"""Inspectors during generation: in order, beside the network, once per block, and honest about what they rejected."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import Scripted, content, scripted  # noqa: F401

from synthaug_plugins.curation.base import Inspector, Verdicts
from synthaug_plugins.engine.generate import generate, repair
from synthaug_plugins.errors import ModelError, QuotaShortfall, RecipeError
from synthaug_plugins.generators.base import Made, NonFiniteImages
from synthaug_plugins.registry import INSPECTORS
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify


class Watcher(Inspector):
    """Remembers what it was shown; `act` may do more."""

    calls: list[tuple[str, list[str], int]] = []
    act: Callable[..., Verdicts | None] = staticmethod(lambda requests, images: None)

    def identity(self) -> dict[str, Any]:
        return {'type': 'Watcher'}

    def begin_block(self) -> None:
        self.calls.append(('begin', [], threading.get_ident()))

    def inspect(self, requests: Any, images: Any) -> Verdicts:
        self.calls.append(('inspect', [r.id for r in requests], threading.get_ident()))
        return self.act(requests, images) or Verdicts([None] * len(images))


class Alternating(Inspector):
    """Keeps a count over a block and rejects every other image by it: what comes first matters."""

    def identity(self) -> dict[str, Any]:
        return {'type': 'Alternating'}

    def begin_block(self) -> None:
        self.seen = 0

    def inspect(self, requests: Any, images: Any) -> Verdicts:
        numbers = np.arange(self.seen, self.seen + len(images))
        self.seen += len(images)
        lists = np.stack([numbers, -numbers], 1).astype(np.float16)
        return Verdicts([f'number {n}, not even' if n % 2 else None for n in numbers], {'count': numbers, 'pair': lists})


@pytest.fixture
def watched(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    monkeypatch.setitem(INSPECTORS._module_dict, 'Watcher', Watcher)
    monkeypatch.setitem(INSPECTORS._module_dict, 'Alternating', Alternating)
    monkeypatch.setattr(Watcher, 'calls', [])
    return lambda **keys: scripted(**{'inspectors': [{'type': 'Watcher'}], **keys})


def shown() -> list[list[str]]:
    return [ids for what, ids, _ in Watcher.calls if what == 'inspect']


def test_inspectors_see_a_block_in_the_order_of_its_requests_in_one_thread(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where requests fall into buckets that are made one after the other, and where memory runs out on the way."""
    expected = [[f'{block:05d}_{number:06d}' for number in part] for block in (0, 1) for part in (range(4), range(4, 6))]
    monkeypatch.setattr(Scripted, 'bucket', lambda self, request: request.params['number'] % 3)
    generate(watched(), tmp_path / 'buckets', 'cpu', quiet=True)
    assert shown() == expected
    assert [what for what, _, _ in Watcher.calls] == ['begin', 'inspect', 'inspect'] * 2
    for block in (Watcher.calls[:3], Watcher.calls[3:]):
        threads = {thread for _, _, thread in block}
        assert len(threads) == 1
        assert threading.get_ident() not in threads
    Watcher.calls.clear()
    monkeypatch.setattr(Scripted, 'largest_batch', 1)
    generate(watched(), tmp_path / 'small', 'cpu', quiet=True)
    assert shown() == expected


def test_inspectors_work_beside_the_network(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first batch is inspected while the second is made: its inspection ends only after that has begun."""
    second, make = threading.Event(), Scripted.generate

    def generating(self: Any, requests: Any) -> Any:
        if requests[0].params['number']:
            second.set()
        return make(self, requests)

    monkeypatch.setattr(Scripted, 'generate', generating)
    waited = []
    monkeypatch.setattr(Watcher, 'act', staticmethod(lambda requests, images: waited.append(second.wait(60))))
    generate(watched(), tmp_path / 's', 'cpu', quiet=True)
    assert waited
    assert all(waited)


def test_an_inspector_without_memory_is_named_and_leaves_no_half_block(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(requests: Any, images: Any) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(Watcher, 'act', staticmethod(fail))
    with pytest.raises(ModelError, match=r'Memory does not suffice for Watcher and 4 images\. Lower batch_size'):
        generate(watched(), tmp_path / 's', 'cpu', quiet=True)
    assert not Store.open(tmp_path / 's').finished()
    assert not [p for p in (tmp_path / 's').rglob('*') if 'partial' in p.name]


def test_a_killed_run_with_an_inspector_that_remembers_ends_with_the_same_bytes(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = watched(inspectors=[{'type': 'Alternating'}, {'type': 'Watcher'}], image={'keep_rejected': True}, per_class=12)
    whole = generate(recipe, tmp_path / 'whole' / 'store', 'cpu', quiet=True)
    total = len(shown())
    assert total > 8
    for killed_at in (1, 3, total // 2, total - 1):
        out = tmp_path / f'killed-{killed_at}' / 'store'
        pid = os.fork()
        if pid == 0:
            left = [killed_at]

            def act(requests: Any, images: Any, left: list[int] = left) -> None:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

            Watcher.act = staticmethod(act)
            generate(recipe, out, 'cpu', quiet=True)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        published = len(Store.open(out).finished())
        assert published < len(whole.plan.blocks)
        generate(recipe, out, 'cpu', quiet=True)
        assert content(out) == content(whole.folder)
        for folder in ('shards', 'index'):
            for path in (whole.folder / folder).iterdir():
                assert (out / folder / path.name).read_bytes() == path.read_bytes()


def test_lists_of_an_inspector_stand_in_the_index_also_of_rejected_images(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, 'trouble', staticmethod(lambda n: 'nan' if n == 1 else ''))
    store = generate(watched(inspectors=[{'type': 'Alternating'}]), tmp_path / 's', 'cpu', quiet=True)
    rows = [row for row in store.index().to_pylist() if row['label'] == 0]
    assert rows[1]['pair'] is None
    assert rows[1]['count'] is None
    finite = [row for row in rows if row['pair']]
    assert [row['pair'] for row in finite] == [[n, -n] for n in range(len(finite))]
    assert [row['verdict'] for row in finite] == ['kept', 'rejected'] * 5 + ['kept']
    assert verify(store) == []


def test_repair_makes_lists_again(watched: Any, tmp_path: Path) -> None:
    store = generate(watched(inspectors=[{'type': 'Alternating'}], image={'keep_rejected': True}), tmp_path / 's', 'cpu', quiet=True)
    before = content(store.folder)
    for path in (store.folder / 'shards' / '00000.tar', store.folder / 'index' / '00001.parquet'):
        path.write_bytes(path.read_bytes()[:-700])
    assert len(verify(store)) == 2
    assert not repair(store.folder, 'cpu', quiet=True)
    assert content(store.folder) == before


def test_a_filter_that_rejects_everything_stops_and_says_so_by_class_and_reason(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def act(requests: Any, images: Any) -> Verdicts:
        return Verdicts([f'p 0.{r.seed % 100:02d} not above 0.10' if r.label == 0 or r.params['number'] % 2 else 'CLIP filter (p = 0.1)' for r in requests])

    monkeypatch.setattr(Watcher, 'act', staticmethod(act))
    with pytest.raises(QuotaShortfall) as short:
        generate(watched(tries_per_image=3), tmp_path / 's', 'cpu', quiet=True)
    said = str(short.value)
    assert 'not met for 2 of 2 classes' in said
    assert 'Not one image was accepted.' in said
    assert 'a: 0 of 6 after 18 tries (rejected: 18 p ... not above 0.10)' in said
    assert 'b: 0 of 6 after 18 tries (rejected: 9 CLIP filter, 9 p ... not above 0.10)' in said
    assert sum(len(ids) for ids in shown()) == 36


def test_a_message_about_many_classes_stays_readable(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Watcher, 'act', staticmethod(lambda requests, images: Verdicts(['no'] * len(images))))
    names = [f'class {n}' for n in range(40)]
    with pytest.raises(QuotaShortfall, match=r'40 of 40 classes .* class 11: 0 of 1 .*; and 28 more classes\.') as short:
        generate(watched(classes=names, per_class=1, tries_per_image=1), tmp_path / 's', 'cpu', quiet=True)
    assert 'class 12:' not in str(short.value)


def test_what_a_generator_says_of_its_images_goes_before_the_inspectors(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A safety checker's verdicts and scores are recorded; not finite comes before both."""
    make = Scripted.generate

    def generating(self: Any, requests: Any) -> Made:
        try:
            images = make(self, requests)
        except NonFiniteImages as found:
            images, bad = found.images, found.bad
        else:
            bad = {}
        numbers = [r.params['number'] for r in requests]
        made = Made(images, {i: 'unsafe' for i, n in enumerate(numbers) if n < 3}, {'unsafe_p': np.array([n / 10 for n in numbers])})
        if bad:
            raise NonFiniteImages(made, bad)
        return made

    monkeypatch.setattr(Scripted, 'generate', generating)
    monkeypatch.setattr(Scripted, 'trouble', staticmethod(lambda n: 'nan' if n == 1 else ''))
    monkeypatch.setattr(Watcher, 'act', staticmethod(lambda requests, images: Verdicts(['mine' if r.params['number'] in (2, 4) else None for r in requests])))
    rows = [r for r in generate(watched(), tmp_path / 's', 'cpu', quiet=True).index().to_pylist() if r['label'] == 0]
    assert [(r['reason'] or '').partition(' (')[0] for r in rows] == ['unsafe', 'not finite', 'unsafe', '', 'mine', '', '', '', '', '']
    assert [r['unsafe_p'] for r in rows] == [None if n == 1 else n / 10 for n in range(10)]


@pytest.mark.parametrize(
    ('verdicts', 'text'),
    [
        (lambda n: Verdicts([None]), 'Watcher gives 1 reasons for 4 images'),
        (lambda n: Verdicts([None] * n, {'q': np.zeros(3)}), r"Watcher gives 'q' with the shape \(3,\) for 4 images"),
        (lambda n: Verdicts([None] * n, {'q': np.zeros((n, 2, 2))}), r'with the shape \(4, 2, 2\)'),
        (lambda n: Verdicts([None] * n, {'contrast_std': np.zeros(n)}), "ImageSanity and Watcher both write the score column 'contrast_std'"),
    ],
)
def test_an_inspector_that_answers_wrongly_is_named(watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdicts: Any, text: str) -> None:
    monkeypatch.setattr(Watcher, 'act', staticmethod(lambda requests, images: verdicts(len(images))))
    with pytest.raises(RecipeError, match=text):
        generate(watched(inspectors=[{'type': 'ImageSanity'}, {'type': 'Watcher'}]), tmp_path / 's', 'cpu', quiet=True)
