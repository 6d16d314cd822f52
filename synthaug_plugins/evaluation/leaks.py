"""Which images the loaders of a recipe read, told from configs and file names: no image is opened."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.fingerprint import LOADERS, plain

if TYPE_CHECKING:
    from mmengine.config import Config

_CHOOSES_NO_IMAGES = ('pipeline', '_scope_', 'type')
_CURE = 'Training, validation and test images must be three sets: set their data_root or ann_file.'
_PLACES = ('data_root', 'data_prefix', 'ann_file')


def refuse_leaks(cfg: Config, listed: dict[str, frozenset[str] | None] | None = None) -> None:
    """Refuse a recipe (before plugins edit it) of whose training, validation and test images two sets share any.

    Two sets are compared by the files that they list, links resolved, and by their configs where one of them lists none:
    see `files_of`.

    Args:
        listed: remembers sets that were already listed, so that a large one is listed once.

    Raises:
        RecipeError: it names the two, how many files they share, and one; or a dataset cannot be built.
    """
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get('default_scope', 'mmengine'))
    listed = {} if listed is None else listed
    names = [name for name in LOADERS if cfg.get(name) is not None]
    images = {name: data_of(cfg[name]) for name in names}
    files = {name: files_of(name, cfg[name], listed) for name in names}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            mine, others = files[a], files[b]
            if mine is None or others is None:
                if images[a] == images[b]:
                    raise RecipeError(f'{a} and {b} read the same images.', _CURE)
            elif shared := mine & others:
                raise RecipeError(f'{a} and {b} read the same images: {len(shared)} files, such as {min(shared)!r}.', _CURE)


def files_of(name: str, loader: Mapping[str, Any], listed: dict[str, frozenset[str] | None]) -> frozenset[str] | None:
    """Real paths of the image files that a loader reads.

    Returns: None for a dataset that holds arrays instead of files (CIFAR, MNIST), and for one whose folder is not there:
        the run itself will say so.

    Raises:
        RecipeError: the dataset of the loader called `name` cannot be built.
    """
    config = _without_pipelines(loader['dataset'])
    key = plain(config)
    if key not in listed:
        try:
            listed[key] = _list(config)
        except OSError:
            listed[key] = None
        except Exception as error:  # a dataset is other people's code: it may raise anything
            what = f'The dataset of {name} cannot be built: {type(error).__name__}: {error}.'
            raise RecipeError(what, f'Correct {name}.dataset.') from error
    return listed[key]


def _list(config: Any) -> frozenset[str] | None:
    from mmpretrain.datasets import CIFAR10, MNIST
    from mmpretrain.registry import DATASETS

    classes = [_dataset_class(kind) for kind in _types(config)]
    if any(cls and issubclass(cls, CIFAR10 | MNIST) for cls in classes):
        return None  # listing them means to read, perhaps to download, every image
    dataset = DATASETS.build(copy.deepcopy(config))
    if not hasattr(dataset, 'get_data_info'):
        return None
    paths = {dataset.get_data_info(i).get('img_path') for i in range(len(dataset))}
    if not all(isinstance(path, str) for path in paths):
        return None
    folders: dict[str, str] = {}
    return frozenset(_real_path(path, folders) for path in paths)


def _real_path(path: str, folders: dict[str, str]) -> str:
    """`os.path.realpath`, at one look at the disk per file: a million files share few folders."""
    if '://' in path:
        return path
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    joined = os.path.join(folders[folder], name)
    return os.path.realpath(joined) if os.path.islink(joined) else joined


def _without_pipelines(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {k: [] if k == 'pipeline' else _without_pipelines(v) for k, v in tree.items()}
    return type(tree)(map(_without_pipelines, tree)) if isinstance(tree, list | tuple) else tree


def _types(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        if 'type' in tree:
            yield tree['type']
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for branch in tree:
            yield from _types(branch)


def data_of(loader: Mapping[str, Any]) -> str:
    """What a loader reads, as text: its dataset config without the pipeline, with real paths and without what is default anyway."""
    return plain(_normal(loader['dataset']))


def _normal(tree: Any) -> Any:
    from mmpretrain.datasets import KFoldDataset

    if isinstance(tree, list | tuple):
        return [_normal(branch) for branch in tree]
    if not isinstance(tree, Mapping):
        return tree
    cls = _dataset_class(tree.get('type'))
    defaults = _defaults(cls)
    kept = {k: _normal(v) for k, v in tree.items() if k not in (*_CHOOSES_NO_IMAGES, *_PLACES)}
    if not cls or not issubclass(cls, KFoldDataset):  # there it chooses the fold
        kept.pop('test_mode', None)
    kept = {k: v for k, v in kept.items() if k not in defaults or plain(v) != plain(defaults[k])}
    if any(key in tree for key in _PLACES):
        root, prefix, ann_file = (tree.get(key) or '' for key in _PLACES)
        prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
        kept['data_prefix'] = sorted(_place(root, p) for p in prefixes)
        if ann_file:
            kept['ann_file'] = _place(root, ann_file)
    return kept


def _place(root: str, path: Any) -> str:
    place = os.path.join(root, os.path.expanduser(str(path)))
    return place.rstrip('/') if '://' in place else os.path.realpath(place)


def _dataset_class(kind: Any) -> type | None:
    from mmpretrain.registry import DATASETS

    found = DATASETS.get(kind) if isinstance(kind, str) else kind
    return found if isinstance(found, type) else None


def _defaults(cls: type | None) -> dict[str, Any]:
    """Default arguments of a dataset class; where it passes them on, those of the class that takes them."""
    found: dict[str, Any] = {}
    for base in cls.__mro__ if cls else ():
        for parameter in inspect.signature(vars(base).get('__init__', object.__init__)).parameters.values():
            if parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter.default)
    return found
