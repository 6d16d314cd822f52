"""`synthaug = dict(transform=dict(...))`: swap real images for synthetic ones inside the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.training.recipe_edit import leaf_datasets, read_any_address, take_options, train_loader, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

KEY = 'transform'
OPTIONS = {
    'store': 'folder of the store',
    'prob': 'probability of a swap, default 0.5',
    'partner': "'source' (default): a variant of this very image; 'class': any synthetic image of its class",
    'select': 'which records, as in mix',
    'root': "for partner='source': the folder of class folders with the real images",
    'classes': "for partner='class': class names in label order",
    'sources': "for partner='class' with variants of real images: must be 'any'; mix checks held-out images, a transform cannot",
    'channel_order': "of images that the dataset keeps in memory: 'rgb' or 'bgr', default 'bgr'",
}


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `transform`."""
    return (KEY,)


@hookimpl
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Put SwapWithSynthetic before the loading transform, or first where the dataset gives pixels."""
    given = take_options(options, KEY, OPTIONS)
    if given is None:
        return
    if given.get('store') is None:
        raise RecipeError('synthaug: transform needs store.', "Write transform=dict(store='stores/name', prob=0.5, ...).")
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) == 'SwitchRecipeHook' and any('train_pipeline' in step for step in hook.get('schedule', [])):
            raise RecipeError(
                'synthaug: SwitchRecipeHook exchanges the pipeline during training, and the swap would be lost.',
                "Use mix, or write dict(type='synthaug_plugins.SwapWithSynthetic', ...) into the pipelines yourself.",
            )
    read_any_address(cfg, KEY)
    swap = {'type': 'synthaug_plugins.SwapWithSynthetic', **{k: v for k, v in given.items() if v is not None}}
    for dataset in leaf_datasets(train_loader(cfg, KEY)['dataset']):
        pipeline = list(dataset.get('pipeline') or [])
        place = next((i for i, step in enumerate(pipeline) if type_name(step).startswith('Load')), 0)
        dataset['pipeline'] = [*pipeline[:place], dict(swap), *pipeline[place:]]
