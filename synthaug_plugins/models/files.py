"""The files of a text-to-image pipeline in diffusers' layout: a folder, or a repository of the Hugging Face hub. Never a pickle, never code."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, first_line
from synthaug_plugins.weights import CARD, CONFIG, EMBEDDED, PIPELINE_INDEX, embedded_folder, file_hash, quiet_loading, read_json, tensor_shapes

if TYPE_CHECKING:
    import torch

_HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[\w.-]+')
_SMALL = ('*.json', '*.txt', '*.model', 'README.md')  # configs, tokenizers, lists of shards
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.msgpack', '.h5')
_LIBRARIES = ('diffusers', 'transformers')  # whose classes a component may have: anything else would be code of the repository


class ModelFiles:
    """Configs, tokenizers and weights of a pipeline or of one of its parts. Weights of a hub repository are fetched when they are loaded.

    Args:
        name: `embedded:NAME`, a folder, or a name on the hub such as 'stabilityai/stable-diffusion-xl-base-1.0'. On the hub,
            configs and tokenizers are fetched here; with HF_HUB_OFFLINE=1 they must be in its cache.
        revision: branch, tag or commit on the hub; what it means now is written down as a commit.
        variant: of the weights: 'fp16' takes model.fp16.safetensors where a component has it.
        index: the file that must be there.

    Attributes:
        folder: where the files are; for the hub, the snapshot of the commit in its cache.
        commit: hash of the commit on the hub, else None.

    Raises:
        ModelError: no such folder or repository, it is gated or not reachable, or it holds no `index`.
    """

    def __init__(self, name: str, revision: str | None = None, variant: str | None = None, index: str = PIPELINE_INDEX) -> None:
        self.name, self.variant = str(name), variant
        self.commit: str | None = None
        folder = Path(self.name).expanduser()
        if self.name.startswith(EMBEDDED):
            folder = embedded_folder(self.name)
        elif folder.is_file():
            cure = 'Give the folder in the layout of diffusers; single files (.ckpt, .safetensors) and pickles are refused.'
            raise ModelError(f'model = {self.name!r} is a file.', cure)
        elif not folder.is_dir() and _HUB_NAME.fullmatch(self.name):
            folder = self._from_hub(revision)
        elif not folder.is_dir():
            raise ModelError(f'model = {self.name!r}: there is no such folder.', 'Give a folder, a name on the hub (owner/name) or embedded:NAME.')
        if revision is not None and self.commit is None:
            raise ModelError(f'revision = {revision!r} of {self.name!r}: a folder has no revisions.', 'Leave it out.')
        self.folder = folder
        if self.commit is None:
            self.files = _listed(folder)
        if index not in self.files:
            found = sorted(f for f in self.files if Path(f).suffix in (*_PICKLES, '.safetensors') and '/' not in f)
            hint = (
                f' It holds the single file {found[0]!r}: save it with diffusers, pipeline.save_pretrained(folder, safe_serialization=True).' if found else ''
            )
            raise ModelError(f'model = {self.name!r}: {index} is missing.', f'A pipeline is saved by diffusers with {index} in its folder.{hint}')

    @property
    def cure(self) -> str:
        """What to do when a file is missing or wrong."""
        return 'Copy or save the whole folder again.' if self.commit is None else f'Fetch it where there is a connection: hf download {self.name}.'

    def _from_hub(self, revision: str | None) -> Path:
        """The snapshot with the small files of a hub repository; sets `commit` and `files`."""
        from huggingface_hub import HfApi, constants

        listed: set[str] | None = None
        failure: Exception | None = None
        if not constants.HF_HUB_OFFLINE:
            try:
                info = HfApi().model_info(self.name, revision=revision)
                self.commit, listed = str(info.sha), {str(s.rfilename) for s in info.siblings or ()}
            except Exception as error:  # no connection has many types; what is cached may still do
                _refuse_known(error, self.name, revision)
                failure = error
        folder = self._snapshot(self.commit or revision, [*_SMALL], failure)
        self.commit = self.commit or folder.name
        self.files = listed if listed is not None else _listed(folder)
        return folder

    def _snapshot(self, revision: str | None, patterns: list[str], failure: Exception | None = None) -> Path:
        """The snapshot with these files. After a `failure` to reach the hub from its cache alone: the hub's client would try for 20 seconds more."""
        from huggingface_hub import constants, snapshot_download

        try:
            offline = constants.HF_HUB_OFFLINE or failure is not None
            return Path(snapshot_download(self.name, revision=revision, allow_patterns=patterns, local_files_only=offline))
        except Exception as error:  # types differ between versions of the hub's client and of what it uses for http
            _refuse_known(error, self.name, revision)
            what = f'model = {self.name!r} is no folder here, and it cannot be fetched from the hub: {first_line(failure or error)}.'
            cure = 'Fetch it first where there is a connection (hf download), or give a folder.'
            if constants.HF_HUB_OFFLINE:
                what = f'model = {self.name!r} is no folder here, is not in the cache of the hub, and HF_HUB_OFFLINE=1 forbids to fetch it.'
                cure = 'Unset HF_HUB_OFFLINE, fetch it first (hf download), or give a folder.'
            raise ModelError(what, cure) from error

    def config(self, component: str, file: str = CONFIG) -> dict[str, Any]:
        """The config of a component; '' is the folder itself.

        Raises:
            ModelError: the file is missing or is no JSON.
        """
        path = f'{component}/{file}' if component else file
        if path not in self.files:
            raise ModelError(f'model = {self.name!r}: {path} is missing.', self.cure)
        return read_json(self.folder / path)

    def weight_files(self, component: str, library: str = 'diffusers') -> list[str]:
        """The files that hold the weights of a component, with their list if they are split; of the variant where there is one.

        Raises:
            ModelError: there are none, only pickles, only those of another variant, or a shard is missing.
        """
        stem = ('diffusion_pytorch_model' if library == 'diffusers' else 'model') + '.safetensors'
        folder = f'{component}/' if component else ''
        for variant in [self.variant, None] if self.variant else [None]:
            dot = f'.{variant}' if variant else ''
            single, index = folder + stem.replace('.safetensors', f'{dot}.safetensors'), f'{folder}{stem}.index{dot}.json'
            # In this order each library looks.
            for path in (index, single) if library == 'diffusers' else (single, index):
                if path == single and path in self.files:
                    return [path]
                if path == index and path in self.files:
                    return [path, *self._shards(folder, path)]
        raise self._no_weights(folder, stem)

    def _shards(self, folder: str, index: str) -> list[str]:
        shards = sorted({folder + str(shard) for shard in read_json(self.folder / index).get('weight_map', {}).values()})
        for shard in shards:
            if shard not in self.files:
                raise ModelError(f'model = {self.name!r}: {shard} is missing, which {index} lists.', self.cure)
        return shards

    def _no_weights(self, folder: str, stem: str) -> ModelError:
        here = sorted(f for f in self.files if f.startswith(folder) and '/' not in f.removeprefix(folder))
        pickles = [f for f in here if f.endswith(_PICKLES)]
        variants = [m[1] for f in here if (m := re.search(r'\.(\w+)(?:-\d+-of-\d+)?\.safetensors$', f))]
        what = f'model = {self.name!r}: {folder}{stem} is missing.'
        if variants:
            return ModelError(what, f'There are weights of the variant {variants[0]!r}: set variant={variants[0]!r}.')
        if pickles:
            cure = 'Load it once with diffusers and save it with save_pretrained(folder, safe_serialization=True), or take a revision with safetensors.'
            return ModelError(f'{what} There is the pickle {pickles[0]!r}, which is refused since loading it can run code.', cure)
        return ModelError(what, self.cure)

    def fetch(self, paths: list[str]) -> None:
        """Have these files in `folder`; only the hub's are not there from the start.

        Raises:
            ModelError: they cannot be fetched.
        """
        missing = [path for path in paths if not (self.folder / path).is_file()]
        if missing and self.commit is not None:
            self._snapshot(self.commit, missing)

    def load(self, component: str, cls: Any, dtype: torch.dtype, library: str = 'diffusers') -> Any:
        """A component with its weights on the CPU, in eval mode and without gradients.

        Raises:
            ModelError: the weights cannot be read, or some are missing.
        """
        paths = self.weight_files(component, library)
        self.fetch(paths)
        variant = self.variant if self.variant and any(f'.{self.variant}.' in path or f'.{self.variant}-' in path for path in paths) else None
        options: dict[str, Any] = {'variant': variant, 'use_safetensors': True, 'local_files_only': True, 'output_loading_info': True}
        if library == 'diffusers':
            from diffusers.utils import is_accelerate_available

            options |= {'torch_dtype': dtype, 'low_cpu_mem_usage': is_accelerate_available()}
        else:
            options['dtype'] = dtype
        try:
            with quiet_loading():
                model, info = cls.from_pretrained(str(self.folder / component), **options)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(
                f'model = {self.name!r}: {component or "it"} cannot be loaded: {" ".join(str(error).split())[:300].rstrip(".")}.', self.cure
            ) from error
        if info['missing_keys']:
            what = f'model = {self.name!r}: the weights of {component or "it"} lack {sorted(info["missing_keys"])[0]!r}.'
            raise ModelError(what, self.cure)
        return model.eval().requires_grad_(False)

    def sha256(self, paths: list[str]) -> str:
        """SHA-256 over the names and contents of files of a folder.

        Raises:
            ModelError: one is missing.
        """
        total = hashlib.sha256()
        for path in sorted(paths):
            if not (self.folder / path).is_file():
                raise ModelError(f'model = {self.name!r}: {path} is missing.', self.cure)
            total.update(f'{path}\0{file_hash(self.folder / path)}\n'.encode())
        return total.hexdigest()

    def licence(self) -> str | None:
        """The licence that card.json or the head of README.md names."""
        if CARD in self.files and (self.folder / CARD).is_file():
            return read_json(self.folder / CARD).get('licence')
        readme = self.folder / 'README.md'
        head = re.match(r'---\n(.*?)\n---', readme.read_text(encoding='utf-8', errors='replace'), re.S) if readme.is_file() else None
        found = re.search(r'^license:\s*["\']?([\w.+-]+)', head[1], re.M) if head else None
        return found[1] if found else None


def component_class(files: ModelFiles, component: str, library: str, name: str) -> Any:
    """The class of a component that model_index.json names, of diffusers or transformers.

    A model, tokenizer or scheduler class and nothing else that these libraries hold: an AutoModel would pick the class by a config
    that comes with the model, and ask at the terminal whether to run the model's own code.

    Raises:
        ModelError: of another library, or neither has such a class.
    """
    if library not in _LIBRARIES:
        what = f'model = {files.name!r}: {component} is a {name} of {library!r}, code that comes with the model.'
        raise ModelError(what, f'Only classes of {" and ".join(_LIBRARIES)} are loaded; code from a repository is never run.')
    found = getattr(importlib.import_module(library), name, None)
    if found is None:
        raise ModelError(f'model = {files.name!r}: {library} has no class {name!r}, which {component} asks for.', f'Install a newer {library}.')
    # What needs a package that is missing stands for itself, with `_backends`, and says so when it is loaded.
    if not (isinstance(found, type) and (issubclass(found, _component_bases(library)) or hasattr(found, '_backends'))):
        raise ModelError(f'model = {files.name!r}: {component} is said to be a {library}.{name}, which is no model.', files.cure)
    return found


def _component_bases(library: str) -> tuple[type, ...]:
    """What all components of a pipeline that are loaded here derive from."""
    if library == 'diffusers':
        from diffusers import ModelMixin, SchedulerMixin

        return ModelMixin, SchedulerMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    return PreTrainedModel, PreTrainedTokenizerBase


def check_safetensors(files: ModelFiles, paths: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in weight files of a folder, from their headers alone.

    Raises:
        ModelError: a file is not safetensors or is cut short, or lacks a tensor that the list of shards promises.
    """
    from safetensors import SafetensorError

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path.endswith('.json'):
            continue
        try:
            shapes |= tensor_shapes(files.folder / path)[0]
        except (SafetensorError, OSError) as error:
            raise ModelError(f'model = {files.name!r}: {path} cannot be read as safetensors: {error}.', 'Copy or save it again.') from error
    for path in paths:
        for name, shard in read_json(files.folder / path).get('weight_map', {}).items() if path.endswith('.json') else ():
            if name not in shapes:
                raise ModelError(f'model = {files.name!r}: {shard} lacks {name!r}, which {path} lists.', 'Copy or save it again.')
    return shapes


def _listed(folder: Path) -> set[str]:
    """The files in a folder and in its folders."""
    return {p.relative_to(folder).as_posix() for pattern in ('*', '*/*') for p in folder.glob(pattern) if p.is_file()}


def _refuse_known(error: Exception, name: str, revision: str | None) -> None:
    """Raise ModelError where the hub's answer is final."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        raise ModelError(f'model = {name!r} is gated.', f'Accept its terms at https://huggingface.co/{name} and log in (hf auth login).') from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise ModelError(f'revision = {revision!r}: {name!r} has none of this name.', 'Give a branch, tag or commit that it has.') from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ModelError(f'model = {name!r} is no folder here and no repository of the hub.', 'Correct the name; a private one needs hf auth login.') from error
