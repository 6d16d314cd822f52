"""A store reaches a repository of the hub in one commit or not at all; nothing of others is touched, and the token is told to nobody.

The hub is a fake: what it is asked must fit the signatures of the real client, and it reads what it is sent.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from test_store import CLASSES, MADE_BY, make_plan, make_rows, make_store

from conftest import Say
from synthaug_plugins.errors import DataError, RecipeError, Stopped, StoreError
from synthaug_plugins.handover import hf_parquet
from synthaug_plugins.handover import push as pushing
from synthaug_plugins.handover.push import check_login, push
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

TOKEN = 'hf_' + 'aSecretThatNobodyMayRead'


class Hub:
    """What is asked of it, and the files of its one repository."""

    endpoint = 'https://hub.example'

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.files: dict[str, bytes] | None = None
        self.private = True
        self.sent: dict[str, bytes] = {}
        self.fail: dict[str, BaseException] = {}
        self.small = False  # whether it wants files within the commit

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            bound = inspect.signature(getattr(HfApi, name)).bind(self, *arguments, **options).arguments
            self.asked.append(name)
            if name in self.fail:
                raise self.fail[name]
            return getattr(self, f'_{name}')(bound)

        return call

    def _whoami(self, _: Any) -> dict[str, str]:
        return {'name': 'ann'}

    def _dataset_info(self, bound: dict[str, Any]) -> Any:
        assert bound['repo_id'] == 'ann/pets'
        if self.files is None:
            raise missing('there is none')
        siblings = [SimpleNamespace(rfilename=name) for name in ['.gitattributes', *self.files]]
        return SimpleNamespace(private=self.private, sha='a' * 40, siblings=siblings)

    def _hf_hub_download(self, bound: dict[str, Any]) -> str:
        path = self.folder / 'download'
        path.write_bytes(self.files[bound['filename']])
        return str(path)

    def _create_repo(self, bound: dict[str, Any]) -> None:
        assert bound['repo_type'] == 'dataset'
        self.files, self.private = {}, bound['private']

    def _preupload_lfs_files(self, bound: dict[str, Any]) -> None:
        for addition in bound['additions']:
            assert len(list(Path(addition.path_or_fileobj).parent.iterdir())) == 1  # one shard on the disk at a time
            with addition.as_file() as file:
                self.sent[addition.path_in_repo] = file.read()
            if not self.small:
                addition.path_or_fileobj = b''

    def _create_commit(self, bound: dict[str, Any]) -> None:
        assert bound['repo_type'] == 'dataset'
        files = dict(self.files)
        for operation in bound['operations']:
            name = operation.path_in_repo
            if not isinstance(operation, CommitOperationAdd):
                del files[name]
                continue
            with operation.as_file() as file:
                files[name] = file.read() or self.sent[name]
        self.files, self.commit = files, bound

    def images(self) -> list[dict[str, Any]]:
        """All rows of its shards."""
        return [row for name in sorted(self.files) if name.endswith('.parquet') for row in pq.read_table(io.BytesIO(self.files[name])).to_pylist()]


def missing(said: str, status: int = 404, kind: type[Exception] = RepositoryNotFoundError) -> Exception:
    """A refusal as the client raises it."""
    error = kind.__new__(kind, said)
    Exception.__init__(error, said)
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp('push') / 'store')


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_network: None) -> Hub:
    """A hub that the user is logged in to."""
    made = Hub()
    made.folder = tmp_path
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: made)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(pushing.tempfile, 'tempdir', str(tmp_path / 'temporary'))
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    return made


@pytest.mark.parametrize('small', [False, True])
def test_a_store_is_sent_shard_by_shard_and_appears_in_one_private_commit(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch, synthaug: Say, tmp_path: Path, small: bool
) -> None:
    monkeypatch.setattr(hf_parquet, 'MAX_SHARD', select(store).table['size'].to_numpy().sum() // 2)
    if small:
        monkeypatch.setattr(Hub, '_preupload_lfs_files', lambda self, bound: None)
    done = synthaug('push', store.folder, 'pets', '--licence', 'mit', '--where', 'seed >= 0')
    assert (done.status, done.out) == (0, 'https://hub.example/datasets/ann/pets\n'), done.err
    assert 'shard 2 of 2: 9 images' in done.err
    assert hub.asked == ['whoami', 'dataset_info', 'create_repo', 'preupload_lfs_files', 'preupload_lfs_files', 'create_commit']
    assert hub.private
    assert sorted(hub.files) == ['README.md', 'data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet']
    assert [row['id'] for row in hub.images()] == select(store).table['id'].to_pylist()
    assert b'license: mit' in hub.files['README.md']
    assert b'They are a selection: seed &gt;= 0' in hub.files['README.md']
    assert not list((tmp_path / 'temporary').iterdir())
    everything = done.out + done.err + ''.join(content.decode(errors='ignore') for content in hub.files.values()) + str(hub.commit)
    assert TOKEN not in everything


def test_the_same_store_goes_to_its_repository_again_and_leaves_no_old_shard(store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hf_parquet, 'MAX_SHARD', 1000)
        push(store, 'ann/pets', select(store))
    assert len(hub.files) > 4
    said: list[str] = []
    push(store, 'ann/pets', select(store, "class = 'one'", allow_empty=True), public=True, say=said.append)
    assert sorted(hub.files) == ['README.md', 'data/train-00000-of-00001.parquet']
    assert {row['label'] for row in hub.images()} == {CLASSES.index('one')}
    assert hub.commit['parent_commit'] == 'a' * 40  # whoever wrote to it meanwhile is not overwritten
    assert said[0] == 'ann/pets is private and stays so; its settings can change that'


@pytest.mark.parametrize(
    ('files', 'private', 'said'),
    [
        ({'README.md': b'# Mine'}, True, 'holds other data than this store'),
        ({'README.md': b'<!-- synthaug data card of the store 123 -->'}, True, 'holds other data than this store'),
        ({'data/train-00000-of-00001.parquet': b'PAR1'}, True, 'holds other data than this store'),
        ({'train.csv': b'1'}, True, "holds 'train.csv', which no push left there"),
        ({}, False, 'is public.*--public'),
    ],
)
def test_a_repository_of_other_data_or_for_everybody_is_not_written_to(store: Store, hub: Hub, files: dict[str, bytes], private: bool, said: str) -> None:
    hub.files, hub.private = dict(files), private
    with pytest.raises(DataError, match=said):
        push(store, 'ann/pets', select(store))
    assert hub.files == files
    assert not {'create_repo', 'preupload_lfs_files', 'create_commit'} & set(hub.asked)


def test_public_is_what_was_asked_for(store: Store, hub: Hub) -> None:
    push(store, 'ann/pets', select(store), public=True)
    assert not hub.private
    push(store, 'ann/pets', select(store), public=True)


def test_who_is_not_logged_in_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, synthaug: Say) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token'))
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.delenv('HUGGING_FACE_HUB_TOKEN', raising=False)
    done = synthaug('push', tmp_path / 'no store', 'ann/pets')
    assert (done.status, done.out) == (2, '')
    assert done.err == 'synthaug: You are not logged in to the hub. Run: hf auth login\n'
    with pytest.raises(RecipeError, match='no name of a repository'):
        check_login('datasets/ann/pets')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(RecipeError, match='HF_HUB_OFFLINE=1'):
        check_login('ann/pets')


def test_a_refusal_of_the_hub_says_what_to_do_and_holds_no_token(store: Store, hub: Hub) -> None:
    for status, cure in ((401, 'hf auth login'), (403, 'hf auth login'), (412, 'Somebody else wrote'), (500, 'Try again')):
        hub.fail['create_commit'] = missing(f'Client error {status} with Bearer {TOKEN}', status, OSError)
        with pytest.raises(DataError, match=cure) as refused:
            push(store, 'ann/pets', select(store))
        assert f'Client error {status} with Bearer ***' in str(refused.value)
        assert TOKEN not in str(refused.value)
        assert refused.value.__cause__ is None
        assert hub.files == {}


def test_a_push_that_is_stopped_or_meets_damage_changes_nothing(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.fail['preupload_lfs_files'] = KeyboardInterrupt()
    with pytest.raises(Stopped, match='nothing was changed in the repository'):
        push(store, 'ann/pets', select(store))
    del hub.fail['preupload_lfs_files']
    broken = make_store(tmp_path / 'broken')
    shard = broken.folder / 'shards' / '00000.tar'
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(StoreError, match='ends at'):
        push(broken, 'ann/pets', select(broken))
    assert hub.files == {}
    assert 'create_commit' not in hub.asked
    assert not list((tmp_path / 'temporary').iterdir())


def test_an_unfinished_store_stays_at_home(tmp_path: Path, hub: Hub) -> None:
    store = Store.create(tmp_path / 'store', make_plan(), MADE_BY)
    block = store.unfinished()[0]
    store.publish(block, make_rows(block), False)
    with pytest.raises(StoreError, match='unfinished: 5 of 6 blocks'):
        push(store, 'ann/pets', select(store, allow_empty=True))
    assert hub.asked == []
