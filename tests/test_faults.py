"""The fault campaign: a short version is survived, and the campaign itself notices what is lost. The long one: `python tools/faults/campaign.py`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from conftest import REPO

sys.path.insert(0, str(REPO / 'tools' / 'faults'))
import campaign
import disks
from harness import Bench, Lost


@pytest.fixture(scope='module')
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp('faults'), random.Random(0), fork=True, blocks=4, steps=2)


@pytest.mark.parametrize('fault', [f for f in campaign.FAULTS if f.quick], ids=lambda f: f.name)
def test_a_run_survives(fault: campaign.Fault, bench: Bench) -> None:
    """Killed or hindered, the same command ends with the store of an unhindered run, byte by byte."""
    (tally,) = campaign.run(bench, [fault], lambda f: 1, seed=1)
    if tally.left_out:
        pytest.skip(tally.left_out)
    assert (tally.tried, tally.lost) == (1, [])


def test_what_is_lost_is_counted_and_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def lost(bench: Bench) -> None:
        raise Lost('a block is gone')

    def cannot(bench: Bench) -> None:
        raise disks.NotHere('mounting needs root')

    tallies = campaign.run(bench, [campaign.Fault('fire', 'smoke', lost), campaign.Fault('flood', 'water', cannot)], lambda f: 2, seed=1)
    assert [(t.tried, len(t.lost)) for t in tallies] == [(2, 2), (0, 0)]
    assert 'LOST fire, case 1: a block is gone' in capsys.readouterr().out
    text = campaign.table(tallies)
    assert 'not tried: mounting needs root' in text
    assert text.splitlines()[-1].split() == ['all', '2', '0', '2']


@pytest.mark.parametrize('name', ['shards/00001.tar', 'index/00002.parquet', 'shards/_info.json'])
def test_a_store_that_differs_in_one_byte_is_not_the_same(name: str, bench: Bench, tmp_path: Path) -> None:
    import shutil

    whole = bench.whole()
    shutil.copytree(whole, tmp_path / 'store')
    bench.same(tmp_path / 'store', whole)
    data = (tmp_path / 'store' / name).read_bytes()
    (tmp_path / 'store' / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Lost, match='differ'):
        bench.same(tmp_path / 'store', whole)


def test_sigkills_are_shared_out_to_the_last() -> None:
    assert sum(campaign.shares(100).values()) == 100
    assert sum(campaign.shares(7).values()) == 7
    assert all(campaign.shares(100).values())
