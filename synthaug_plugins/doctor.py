"""What this environment is, what would break in it, and the cure: `synthaug doctor`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from synthaug_plugins import __version__
from synthaug_plugins.device import device_name

FAMILIES = {'mmengine': 'onedl-mmengine', 'mmpretrain': 'onedl-mmpretrain', 'mmcv': 'onedl-mmcv'}
STOCK_MMCV = ('mmcv', 'mmcv-lite')


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. level: `ok`, `note` (works, with a cost), `error` (must be mended)."""

    level: str
    text: str
    cure: str = ''

    def __str__(self) -> str:
        return f'{self.level:5}  {self.text}' + (f'\n       {self.cure}' if self.cure else '')


def version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def examine() -> list[Finding]:
    """Everything worth saying about this environment, errors included."""
    return [*_python_and_torch(), *_families(), *_shims(), *_extras()]


def _python_and_torch() -> Iterator[Finding]:
    yield Finding('ok', f'synthaug_plugins {__version__}, Python {sys.version.split()[0]}')
    import torch

    if not torch.version.cuda:
        yield Finding('note', f'torch {torch.__version__} without CUDA: runs on the CPU')
    elif torch.cuda.is_available():
        yield Finding('ok', f'torch {torch.__version__}, CUDA {torch.version.cuda}, {device_name("cuda")}')
    else:
        yield Finding(
            'note',
            f'torch {torch.__version__} is built for CUDA {torch.version.cuda}, but no CUDA device answers: runs on the CPU',
            'If this machine has a GPU, its driver is missing or too old for that CUDA version (nvidia-smi tells).',
        )
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a torchvision built for another torch fails in many ways
        yield Finding('error', f'torchvision cannot be imported beside this torch: {error}', 'Install both again in one command: pip install torch torchvision')


def _families() -> Iterator[Finding]:
    for module, fork in FAMILIES.items():
        stock = next((f'{d} {v}' for d in (STOCK_MMCV if module == 'mmcv' else (module,)) if (v := version(d))), None)
        forked = f'{fork} {v}' if (v := version(fork)) else None
        if stock and forked:
            yield Finding(
                'error',
                f'{stock} and {forked} are both installed: they share every file, and the later install has overwritten the other',
                f'Uninstall both, then install one: pip uninstall {stock.split()[0]} {fork}',
            )
        elif stock or forked:
            yield Finding('ok', f'{stock or forked} ({"stock" if stock else "onedl"} family)')
        elif module == 'mmcv':
            yield Finding(
                'error', 'mmcv is missing: MMPretrain needs it', "Run: pip install 'synthaug-plugins[mmcv]' (or the full mmcv, for MMDetection users)"
            )
        else:
            yield Finding('error', f'{module} is missing', f'Run: pip install {module}')
    if version('mmcv') and version('mmcv-lite'):
        yield Finding('error', 'mmcv and mmcv-lite are both installed: they overwrite each other', 'Run: pip uninstall mmcv-lite, then reinstall mmcv')


def _shims() -> Iterator[Finding]:
    from synthaug_plugins.compat import SHIMS

    for shim in SHIMS:
        try:
            present = shim.present()
        except Exception as error:  # a package that is installed but broken fails in many ways
            yield Finding('error', f'looking for the fault {shim.name!r} failed: {type(error).__name__}: {error}', 'Reinstall the package that it names.')
            continue
        if present:
            yield Finding(
                'note',
                f'mended by synthaug at start: {shim.fault}',
                f'Not needed any more once {shim.until}. Under a launcher other than `synthaug` it may show.',
            )


def _extras() -> Iterator[Finding]:
    if importlib.util.find_spec('sklearn') is None:
        yield Finding('note', 'scikit-learn is not installed: no demo on its digits', "Run: pip install 'synthaug-plugins[demo]'")
