"""A store to a data set repository of a hub: Parquet shards and a data card, in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from synthaug_plugins.errors import DataError, MissingExtra, RecipeError, Stopped, StoreError, SynthAugError, first_line
from synthaug_plugins.handover.card import data_card, is_card
from synthaug_plugins.handover.figures import Figures
from synthaug_plugins.handover.hf_parquet import Shard, shards, write_shard
from synthaug_plugins.store.selection import Selection
from synthaug_plugins.store.store import Store

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

README = 'README.md'
_KIND = 'dataset'
_SHARD = re.compile(r'data/train-\d{5}-of-\d{5}\.parquet')
_UNTOUCHED = 'Nothing was changed in the repository'


def push(
    store: Store,
    repo: str,
    selection: Selection,
    licence: str | None = None,
    figures: Sequence[Figures] = (),
    public: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> str:
    """Send a selection of a finished store to a repository, which is made if there is none; it gets all in one commit, or nothing.

    One shard is written at a time, into the system's temporary folder, and removed when it is sent. What was sent before a kill is not sent again.

    Args:
        repo: 'owner/name', or 'name' for one of the user's own.
        selection: with all columns.
        licence, figures: for the card, see `card.data_card`.
        public: whether everybody may see a repository that is made, and whether one that everybody sees already may be written to.
        say: told what is sent.

    Returns: the address of the data set.

    Raises:
        RecipeError: no name of a repository; not logged in; offline.
        StoreError: an unfinished store, a damaged image, a score column called 'image'.
        DataError: a repository that holds something else, or that everybody sees without `public`; the hub refuses or does not answer.
        Stopped: Ctrl-C or a signal.
    """
    token = check_login(repo)
    if waiting := len(store.unfinished()):
        raise StoreError(f'The store {str(store.folder)!r} is unfinished: {waiting} of {len(store.plan.blocks)} blocks are missing.', 'Finish it, then push.')
    pieces = list(shards(selection))
    card = data_card(store, selection, licence, figures)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _explained(repo, token):
        who = api.whoami()['name']
        repo = repo if '/' in repo else f'{who}/{repo}'
        parent, there = _existing(api, repo, store.plan.fingerprint, public, say)
        if parent is None:
            api.create_repo(repo, repo_type=_KIND, private=not public)
        with tempfile.TemporaryDirectory(prefix='synthaug-push-') as folder:
            additions = []
            for number, piece in enumerate(pieces, 1):
                say(f'shard {number} of {len(pieces)}: {len(piece.rows)} images')
                additions.append(_send(api, repo, piece, store, Path(folder) / f'{number}.parquet'))
            stale = there - {piece.name for piece in pieces}
            api.create_commit(
                repo,
                [*(CommitOperationDelete(name) for name in sorted(stale)), *additions, CommitOperationAdd(README, card.encode())],
                repo_type=_KIND,
                commit_message=f'{len(selection.table)} images of the store {store.plan.fingerprint[:12]}',
                parent_commit=parent,  # whoever wrote to it meanwhile is not overwritten
            )
    return f'{api.endpoint}/{_KIND}s/{repo}'


def check_login(repo: str) -> str:
    """The user's token, which goes into no file and no message.

    Raises:
        RecipeError: no name of a repository; not logged in; offline.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise MissingExtra('huggingface_hub', 'hf', '`synthaug push`') from error
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RecipeError(f'{repo!r} is no name of a repository: {first_line(error)}.', 'Write owner/name.') from error
    if constants.HF_HUB_OFFLINE:
        raise RecipeError('HF_HUB_OFFLINE=1 forbids to reach the hub.', 'Unset it.')
    if not (token := get_token()):
        raise RecipeError('You are not logged in to the hub.', 'Run: hf auth login')
    return token


@contextmanager
def _explained(repo: str, token: str) -> Iterator[None]:
    """Refusals of the hub in our words, without the user's token."""
    try:
        yield
    except SynthAugError:
        raise
    except KeyboardInterrupt:
        raise Stopped(f'Stopped: {_UNTOUCHED[0].lower()}{_UNTOUCHED[1:]}.', 'The same command begins again; what was sent is not sent twice.') from None
    except Exception as error:  # types differ between versions of the hub's client and of what it uses for http
        from huggingface_hub import errors

        said = first_line(error).replace(token, '***')
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        cure = 'Try again; what was sent is not sent twice.'
        if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
            cure = 'Log in with a token that may write there: hf auth login'
        elif status == 412:
            cure = 'Somebody else wrote to it meanwhile: look at it, then push again.'
        raise DataError(f'The hub did not take {repo!r}: {said}. {_UNTOUCHED}.', cure) from None  # the client's own error may hold the request's headers


def _existing(api: HfApi, repo: str, fingerprint: str, public: bool, say: Callable[[str], None]) -> tuple[str | None, set[str]]:
    """The last commit of the repository and the shards in it; None where there is no repository.

    Raises:
        DataError: it holds what a push of this store did not leave there, or everybody sees it and that was not asked for.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.dataset_info(repo)
    except RepositoryNotFoundError:
        return None, set()
    names = {str(file.rfilename) for file in info.siblings or ()} - {'.gitattributes'}
    if foreign := sorted(name for name in names if name != README and not _SHARD.fullmatch(name)):
        raise DataError(f'The repository {repo!r} holds {foreign[0]!r}, which no push left there.', 'Push to another repository; nothing was touched.')
    if names:
        card = Path(api.hf_hub_download(repo, README, repo_type=_KIND, revision=info.sha)).read_bytes() if README in names else b''
        if not is_card(card, fingerprint):
            raise DataError(f'The repository {repo!r} holds other data than this store.', 'Push to another repository; nothing was touched.')
    if not info.private and not public:
        raise DataError(f'The repository {repo!r} is public.', 'Make it private in its settings, or give --public.')
    if info.private and public:
        say(f'{repo} is private and stays so; its settings can change that')
    return str(info.sha), names - {README}


def _send(api: HfApi, repo: str, piece: Shard, store: Store, path: Path) -> CommitOperationAdd:
    """Write a shard and send it, ahead of the commit that will name it."""
    from huggingface_hub import CommitOperationAdd

    try:
        write_shard(path, piece, store)
    except OSError as error:
        what = f'A shard was not written to {str(path.parent)!r}: {error.strerror or error}. {_UNTOUCHED}.'
        raise StoreError(what, 'Make room there, or name another folder with TMPDIR.') from error
    addition = CommitOperationAdd(piece.name, path)
    api.preupload_lfs_files(repo, [addition], repo_type=_KIND)
    if addition.path_or_fileobj == b'':  # it was sent; a hub may want a small file within the commit itself
        path.unlink()
    return addition
