"""`synthaug = dict(train_on=dict(store=...))`: train a recipe on a store alone, in the place of its own training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.training.recipe_edit import add_hook, leaf_datasets, preprocessor, read_any_address, take_options, train_loader, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

    from synthaug_plugins.store.store import Store

KEY = 'train_on'
OPTIONS = {
    'store': 'folder of the store to train on',
    'select': 'which of its records, as in mix',
    'soft_labels': 'dict(column=..., blend=1.0, temperature=None): train on class probabilities from a score column, as in mix',
    'num_classes': "'store': head and preprocessor take the store's number of classes; default: the recipe's, which must be equal to it",
    'validate': "False: leave the recipe's validation and test out, as for a store of other classes than theirs; default True",
}


@hookimpl(tryfirst=True)  # what other plugins edit is the training set that is trained on
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Put a StoreDataset where the recipe's images come from; its wrappers, pipeline and sampler stay."""
    beside = next((key for key in ('mix', 'transform') if options.get(key) is not None), None)
    given = take_options(options, KEY, OPTIONS)
    if given is None:
        return
    if beside is not None:
        raise RecipeError(
            f'synthaug: train_on takes the place of the real images that {beside} needs.', f'Use train_on for a store alone, or {beside} beside real images.'
        )
    loader = train_loader(cfg, KEY)
    store = _open(given)
    leaves = list(leaf_datasets(loader['dataset']))
    if len(leaves) > 1:
        raise RecipeError(
            f"synthaug: train_on: the recipe's training set has {len(leaves)} parts.", 'Set train_dataloader.dataset to one of them, or write a StoreDataset.'
        )
    _exchange(cfg, leaves[0], given, store)
    if given.get('num_classes') is not None:
        from synthaug_plugins.training.head_classes import set_head_classes

        set_head_classes(cfg, len(store.classes))
    if given.get('soft_labels') is not None:
        _check_soft(cfg, given['soft_labels'])
    if given.get('validate') is False:
        for name in ('val', 'test'):
            for part in ('dataloader', 'cfg', 'evaluator'):
                cfg[f'{name}_{part}'] = None
    else:
        add_hook(cfg, {'type': 'synthaug_plugins.StoreClassesHook', 'store': given['store']})
    read_any_address(cfg, KEY)


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `train_on`."""
    return (KEY,)


def _open(given: Mapping[str, Any]) -> Store:
    from synthaug_plugins.mixing.records import check_store_spec
    from synthaug_plugins.store.store import Store

    if given.get('store') is None:
        raise RecipeError('synthaug: train_on needs store.', "Write train_on=dict(store='stores/name').")
    for key, allowed in (('num_classes', (None, 'store')), ('validate', (None, True, False))):
        if given.get(key) not in allowed:
            raise RecipeError(f'synthaug: train_on: {key} = {given[key]!r} is unknown.', f'Use {allowed[-1]!r}, or leave it out.')
    return Store.open(check_store_spec({'store': given['store'], 'select': given.get('select')})['store'])


def _exchange(cfg: Config, leaf: Any, given: Mapping[str, Any], store: Store) -> None:
    """Make the config of a data set one of the store, in place. One that names a store already keeps its type and what is not given."""
    mine = {key: given[key] for key in ('store', 'select', 'soft_labels') if given.get(key) is not None}
    if leaf.get('store') is not None:
        leaf.update(mine)
        return
    pipeline = list(leaf.get('pipeline') or [])
    if not any(type_name(step).startswith('Load') for step in pipeline):
        pipeline = [*_loading(cfg, pipeline, store), *pipeline]
    leaf.clear()
    leaf.update({'type': 'synthaug_plugins.StoreDataset', **mine, 'pipeline': pipeline})


def _loading(cfg: Config, pipeline: Sequence[Any], store: Store) -> list[dict[str, Any]]:
    """What reads an image as a data set has it that keeps its images in memory (CIFAR10, MNIST): in the channel order that the preprocessor expects.

    Raises:
        RecipeError: the recipe crops images of another size than the store's.
    """
    crop = next((step['crop_size'] for step in pipeline if type_name(step) == 'RandomCrop'), None)
    resized = any('Resize' in type_name(step) for step in pipeline)
    size = _first_size(store)
    wanted = (crop, crop) if isinstance(crop, int) else None if crop is None else tuple(crop)
    if wanted is not None and not resized and size is not None and size != wanted:
        raise RecipeError(
            f'synthaug: train_on: the recipe takes images of {wanted[0]} x {wanted[1]} pixels as they are, and those of {str(store.folder)!r} have '
            f'{size[0]} x {size[1]}.',
            f"Generate them with image=dict(size={wanted[0]}), or begin the recipe's pipeline with LoadImageFromFile and a Resize.",
        )
    found = preprocessor(cfg)
    if len(found.get('mean') or ()) == 1:
        return [{'type': 'LoadImageFromFile', 'color_type': 'grayscale'}]
    if found.get('to_rgb'):
        return [{'type': 'LoadImageFromFile'}]
    return [{'type': 'LoadImageFromFile'}, {'type': 'mmpretrain.NumpyToPIL', 'to_rgb': True}, {'type': 'mmpretrain.PILToNumpy'}]


def _first_size(store: Store) -> tuple[int, int] | None:
    """(height, width) of an image of the store, None if it has none; of one block only, since millions of rows need not be read for it."""
    from synthaug_plugins.store.encode import decode
    from synthaug_plugins.store.index import read_blocks
    from synthaug_plugins.store.reader import StoreReader
    from synthaug_plugins.store.shard import KEPT

    for number in sorted(store.finished()):
        for row in read_blocks(store.place, [number], ['shard', 'offset', 'size'], KEPT).slice(0, 1).to_pylist():
            image = decode(StoreReader(store.folder).read(**row), f'The first image of {str(store.folder)!r}')
            return image.height, image.width
    return None


def _check_soft(cfg: Config, given: Any) -> None:
    from synthaug_plugins.mixing.soft_labels import check_soft_labels

    check_soft_labels(given)
    if (cfg['model'].get('head') or {}).get('cal_acc'):
        raise RecipeError('synthaug: soft_labels leave no hard label to count accuracy with in training.', 'Set cal_acc=False in the head.')
