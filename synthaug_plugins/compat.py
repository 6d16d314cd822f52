"""Make stock MMEngine, MMCV and MMPretrain work with today's torch, NumPy and setuptools.

Each shim mends one upstream fault, does nothing where the fault is absent (a fixed release, or the onedl family), and
names the release in which it can go. None loosens safety: checkpoints still load with `weights_only=True`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Shim:
    """One upstream fault and its mend.

    Attributes:
        name: short name, as `synthaug doctor` prints it.
        fault: what breaks without it.
        until: when it can go.
        present: whether this environment has the fault.
        mend: makes it work; safe to call twice.
    """

    name: str
    fault: str
    until: str
    present: Callable[[], bool]
    mend: Callable[[], None]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _replace_everywhere(package: str, old: Any, new: Any) -> None:
    """Rebind every name in the loaded modules of `package` that is bound to `old` (they import functions by name)."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and (name == package or name.startswith(f'{package}.')):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


# --- checkpoints: torch.load(weights_only=True) refuses MMEngine's own message hub


def _history_buffer_method(owner: Any, name: str) -> Any:
    """Stands for `builtins.getattr` while a checkpoint is unpickled: reads a statistic of HistoryBuffer, nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in {'min', 'max', 'mean', 'current'}:
        raise AttributeError(f'a checkpoint may not read {name!r} of {owner!r}')
    return getattr(owner, name)


def _safe_globals() -> list[Any]:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    dtypes = {type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.uint32, np.bool_)}
    core = np._core.multiarray  # type: ignore[attr-defined]
    return [np.ndarray, np.dtype, core._reconstruct, core.scalar, HistoryBuffer, (_history_buffer_method, 'builtins.getattr'), *sorted(dtypes, key=repr)]


def _checkpoints_refused() -> bool:
    import torch
    from mmengine.logging import HistoryBuffer

    if not hasattr(torch.serialization, 'add_safe_globals'):
        return False
    return HistoryBuffer not in torch.serialization.get_safe_globals()


def _allow_checkpoints() -> None:
    import torch

    torch.serialization.add_safe_globals(_safe_globals())


# --- pkg_resources: gone from setuptools 81 on, MMEngine finds installed packages through it


def _pkg_resources_missing() -> bool:
    if not _installed('mmengine') or _installed('pkg_resources'):
        return False
    from mmengine.utils import package_utils

    return 'pkg_resources' in package_utils.is_installed.__code__.co_names


def _package_location(package: str) -> Path | None:
    """Folder of an installed package, named by its distribution (`mmcv-full`) or its module (`mmcv`)."""
    modules = [package]
    try:
        top_level = metadata.distribution(package).read_text('top_level.txt') or ''
        modules += top_level.split()
    except metadata.PackageNotFoundError:
        pass
    for module in modules:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent
    return None


def _find_packages_by_metadata() -> None:
    from mmengine.utils import package_utils

    def is_installed(package: str) -> bool:
        return _package_location(package) is not None

    def get_installed_path(package: str) -> str:
        location = _package_location(package)
        if location is None:
            raise metadata.PackageNotFoundError(package)
        return str(location)

    def package2module(package: str) -> str:
        return Path(get_installed_path(package)).name

    for function in (is_installed, get_installed_path, package2module):
        _replace_everywhere('mmengine', getattr(package_utils, function.__name__), function)


# --- NumPy 2: np.uint8 of a negative Python float overflows in MMCV's hue shift


class _Hue(float):
    """A hue factor whose product is a NumPy integer: cast to uint8 it wraps round, as the shift means it to."""

    def __mul__(self, other: Any) -> Any:
        import numpy as np

        return np.int64(float(self) * other)


def _hue_overflows() -> bool:
    if not _installed('mmcv'):
        return False
    import numpy as np
    from mmcv.image import adjust_hue

    try:
        adjust_hue(np.zeros((1, 1, 3), np.uint8), -0.1, backend='cv2')
    except OverflowError:
        return True
    return False


def _wrap_hue() -> None:
    from mmcv.image import photometric

    original = photometric.adjust_hue

    @functools.wraps(original)
    def adjust_hue(img: Any, hue_factor: float, backend: str | None = None) -> Any:
        return original(img, _Hue(hue_factor), backend)

    _replace_everywhere('mmcv', original, adjust_hue)


# --- NumPy 2.4: np.in1d is gone, MMPretrain's retrieval metric calls it


def _in1d_missing() -> bool:
    import numpy as np

    return not hasattr(np, 'in1d') and _installed('mmpretrain')


def _restore_in1d() -> None:
    import numpy as np

    np.in1d = lambda element, test: np.isin(np.ravel(element), test)  # type: ignore[attr-defined]  # noqa: NPY201


# --- transformers 5 beside pycocotools: `import mmpretrain` dies in its BLIP code


def _multimodal_breaks_import() -> bool:
    if 'mmpretrain' in sys.modules or not all(map(_installed, ('mmpretrain', 'pycocotools', 'transformers'))):
        return False
    return int(metadata.version('transformers').split('.')[0]) >= 5


def _import_without_multimodal() -> None:
    """Import MMPretrain while pycocotools seems absent: its multimodal models become placeholders that say what they need."""
    from unittest.mock import patch

    def hide_pycocotools(source: Any, original: Callable[[str], Any], name: str) -> Any:
        if name == 'pycocotools':
            raise source.PackageNotFoundError(name)
        return original(name)

    with ExitStack() as stack:
        for module in ('importlib_metadata', 'importlib.metadata'):  # the stock family asks the first, onedl the second
            if _installed(module):
                source = importlib.import_module(module)
                stack.enter_context(patch.object(source, 'distribution', functools.partial(hide_pycocotools, source, source.distribution)))
        import mmpretrain  # noqa: F401


# --- Adafactor: MMEngine loads transformers' trainer to register this one optimiser


def _adafactor(*args: Any, **options: Any) -> Any:
    from transformers import Adafactor

    return Adafactor(*args, **options)


def _optimisers_load_transformers() -> bool:
    if 'mmengine.optim' in sys.modules or 'transformers' in sys.modules or not all(map(_installed, ('mmengine', 'transformers'))):
        return False
    spec = importlib.util.find_spec('mmengine')
    builder = Path(spec.origin or '').parent / 'optim' / 'optimizer' / 'builder.py' if spec else Path()
    return builder.is_file() and 'from transformers import Adafactor' in builder.read_text(encoding='utf-8')


def _register_adafactor_unloaded() -> None:
    """Import MMEngine's optimisers while `transformers` is a name with nothing behind it but a function that loads it when Adafactor is built."""
    stand_in = ModuleType('transformers')
    stand_in.Adafactor = _adafactor  # type: ignore[attr-defined]
    sys.modules['transformers'] = stand_in
    try:
        import mmengine.optim  # noqa: F401
    finally:
        del sys.modules['transformers']


# --- subsets: MMEngine keeps one deepcopy memo for all calls, keyed by ids of objects that are long gone


def _memo_is_shared() -> bool:
    if not _installed('mmengine'):
        return False
    from mmengine.dataset import BaseDataset

    return any(isinstance(default, dict) for default in BaseDataset._copy_without_annotation.__defaults__ or ())


def _give_each_copy_a_memo() -> None:
    from mmengine.dataset import BaseDataset

    original = BaseDataset._copy_without_annotation

    @functools.wraps(original)
    def copy_without_annotation(self: Any, memo: dict[int, Any] | None = None) -> Any:
        return original(self, {} if memo is None else memo)

    BaseDataset._copy_without_annotation = copy_without_annotation


SHIMS = (
    Shim(
        'adafactor',
        "MMEngine loads transformers' trainer, and PEFT if it is there, to name one optimiser: much of the time in which a training starts",
        'MMEngine imports Adafactor when a recipe asks for it (0.10.7 does not)',
        _optimisers_load_transformers,
        _register_adafactor_unloaded,
    ),
    Shim(
        'checkpoints',
        "torch 2.6 and later refuse MMEngine's own checkpoints (resume, load_from, inference)",
        'MMEngine passes its classes to torch.serialization.add_safe_globals (0.10.7 does not)',
        _checkpoints_refused,
        _allow_checkpoints,
    ),
    Shim(
        'pkg_resources',
        "setuptools 81 and later lack pkg_resources: `_base_ = 'mmpretrain::...'` fails",
        'MMEngine uses importlib.metadata (0.10.7 does not)',
        _pkg_resources_missing,
        _find_packages_by_metadata,
    ),
    Shim(
        'hue',
        'NumPy 2 overflows on a negative hue shift: ColorJitter kills the loader',
        'MMCV casts through an integer (2.2.0 does not)',
        _hue_overflows,
        _wrap_hue,
    ),
    Shim('in1d', 'NumPy 2.4 has no np.in1d: retrieval metrics fail', 'MMPretrain calls np.isin (1.2.0 does not)', _in1d_missing, _restore_in1d),
    Shim(
        'subset',
        "a second dataset.get_subset() (KFoldDataset, indices=) in one process may get another dataset's parts",
        'MMEngine passes a new memo to deepcopy (0.10.7 does not)',
        _memo_is_shared,
        _give_each_copy_a_memo,
    ),
    Shim(
        'multimodal',
        'transformers 5 beside pycocotools: `import mmpretrain` raises TypeError',
        'MMPretrain supports transformers 5 (1.2.0 does not)',
        _multimodal_breaks_import,
        _import_without_multimodal,
    ),
)


def apply() -> list[str]:
    """Mend every fault that is present; called before a trainer recipe is read. Returns the names of the shims used."""
    # mmcv-lite says at every start that it lacks a layer which no classifier here uses.
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``', category=UserWarning)
    # mmcv's colour jitter says so in every loader process, though nothing but alpha was given.
    warnings.filterwarnings('ignore', message="Only use 'alpha' for pillow backend", category=UserWarning)
    used = []
    for shim in SHIMS:
        if shim.present():
            shim.mend()
            used.append(shim.name)
    return used
