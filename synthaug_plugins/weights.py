"""Model folders of our own: safetensors weights, a JSON config, a card. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, nearest
from synthaug_plugins.plain_json import MAX_BYTES, parse_json

if TYPE_CHECKING:
    import torch

EMBEDDED = 'embedded:'
CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'card.json'
PIPELINE_INDEX = 'model_index.json'  # of a pipeline of diffusers


def embedded_models() -> list[str]:
    """Names of the small trained models that the package carries, of any kind."""
    assets = Path(__file__).parent / 'assets'
    return sorted(p.parent.name for p in assets.glob(f'*/{CARD}'))


def embedded_folder(name: str) -> Path:
    """The folder of something that the package carries, a model of any kind.

    Args:
        name: `embedded:NAME`.

    Raises:
        ModelError: nothing embedded has this name.
    """
    known = embedded_models()
    if name.removeprefix(EMBEDDED) not in known:
        raise ModelError(f'model = {name!r}: no embedded model has this name.', nearest(name.removeprefix(EMBEDDED), known))
    return Path(__file__).parent / 'assets' / name.removeprefix(EMBEDDED)


def model_folder(name: str) -> Path:
    """The folder of a denoiser of our own: `embedded:NAME` for one that the package carries, else a path.

    Raises:
        ModelError: no such folder, a pickle file, a folder without config or weights, or a model of another kind.
    """
    folder = embedded_folder(name) if name.startswith(EMBEDDED) else Path(name).expanduser()
    if folder.is_file():
        raise ModelError(
            f'model = {name!r} is a file.',
            f'Give the folder that holds {CONFIG} and {WEIGHTS}; pickles (.pt, .pth, .pkl) are refused since loading them can run code.',
        )
    if (folder / PIPELINE_INDEX).is_file():
        raise ModelError(f'model = {name!r} is a pipeline of diffusers, not a model folder of our own.', "Use type='synthaug_plugins.TextToImage'.")
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            found = sorted(p.name for p in folder.glob('*.p*') if p.suffix in {'.pt', '.pth', '.pkl', '.pickle'})
            hint = f' It holds the pickle {found[0]!r}: see `synthaug convert`.' if found else ''
            if (folder / 'model' / part).is_file():
                hint = f' Did you mean {str(folder / "model")!r}?'
            raise ModelError(f'model = {name!r}: {part} is missing in {str(folder)!r}.', f'A model folder holds {CONFIG} and {WEIGHTS}.{hint}')
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON config of a model folder.

    Raises:
        ModelError: not JSON.
    """
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ModelError: no such file, one that cannot be read, or no JSON object.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f'{size} bytes')
        found = parse_json(path.read_bytes(), finite=False)
    except OSError as error:
        raise ModelError(f'{str(path)!r} cannot be read: {error.strerror}.', 'Give a file that is there and can be read.') from error
    except ValueError as error:
        raise ModelError(f'{str(path)!r} is not valid JSON: {error}.', 'Save the model again, or give the right file.') from error
    if not isinstance(found, dict):
        raise ModelError(f'{str(path)!r} holds no JSON object.', 'A config looks like {"kind": "edm", ...}.')
    return found


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights file."""
    return file_hash(folder / WEIGHTS)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, remembered within the process as long as the file's size and time of change stay."""
    stat = path.stat()
    return _file_hash(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _file_hash(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def weights_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model folder, from the file's header alone.

    Raises:
        ModelError: the file is not safetensors or is cut short.
    """
    from safetensors import SafetensorError

    try:
        return tensor_shapes(folder / WEIGHTS)[0]
    except (SafetensorError, OSError) as error:
        raise _unreadable(folder, error) from error


def tensor_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes of all tensors of a safetensors file by name, and its metadata; reads its header only.

    Raises:
        SafetensorError: it is no safetensors file, or is cut short.
        OSError: it cannot be read.
    """
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  (not a dict)


def folder_identity(name: str, folder: Path, decides: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON that says which model of our own a folder holds: `name`, `sha256` of its weights, `config_sha256`, and `licence` as its card has it.

    Args:
        name: as the user gave it; of a folder, its last part is kept, whatever leads to it.
        decides: plain JSON beside the weights that decides what the model makes.

    Raises:
        ModelError: the card is not JSON.
    """
    card = folder / CARD
    return {
        'name': name if name.startswith(EMBEDDED) else folder.resolve().name,
        'sha256': weights_hash(folder),
        'config_sha256': hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        'licence': read_json(card).get('licence') if card.is_file() else None,
    }


def check_fits(folder: Path, whose: str, network: torch.nn.Module) -> None:
    """Compare the names and shapes in the header of a model folder's weights with those of a network (which may be on the meta device).

    Args:
        whose: weights they are, as the message says it.

    Raises:
        ModelError: the first that differs.
    """
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = weights_shapes(folder)
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            what = f'{name!r} is {found.get(name, "missing")}, the config asks for {wanted.get(name, "no such tensor")}'
            raise ModelError(f'The weights of {whose} do not fit its config: {what}.', 'Save the model again.')


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f'{str(folder / WEIGHTS)!r} cannot be read as safetensors: {error}.', 'Copy or save the model again; pickles are refused.')


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, on CPU.

    Raises:
        ModelError: the file is not safetensors or is cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise _unreadable(folder, error) from error


def save_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], card: Mapping[str, Any]) -> None:
    """Write a model folder: config, weights and card, each by a temporary file and a rename."""
    save_tensors(folder / WEIGHTS, tensors)
    for name, content in ((CONFIG, config), (CARD, card)):
        save_json(folder / name, content)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file by a temporary file and a rename; equal tensors give equal bytes. The folder is made if need be."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial)
    partial.chmod(0o666 & ~_umask())  # safetensors makes the file readable by its owner only
    publish(partial, path)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file by a temporary file and a rename."""
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Give a finished file its name: flushed to disk, then renamed, so that after a power cut the name never holds half a file.

    Raises:
        OSError: disk full, no permission.
    """
    with open(partial, 'rb') as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _umask() -> int:
    """The process's umask; reading it means setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers, which come for each component."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
