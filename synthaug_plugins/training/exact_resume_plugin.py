"""`synthaug = dict(exact_resume=dict())`: a training that was killed and resumed ends with the bits of one that was not (on a CPU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.training.recipe_edit import add_hook, take_options, train_loader, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

KEY = 'exact_resume'
OPTIONS = {'seed': "of what augmentations and the model draw; default: the sampler's. Stages have exact_resume unless they set it to None"}


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `exact_resume`."""
    return (KEY,)


@hookimpl(trylast=True)  # around what the others made of the data set and its batches
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Wrap the training set and its batches, and add the hooks that note and restore where a run stands."""
    given = take_options(options, KEY, OPTIONS)
    if given is None:
        return
    seed = given.get('seed')
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise RecipeError(f'synthaug: {KEY}: seed = {seed!r} is of the wrong kind.', 'Give a whole number.')
    loader = train_loader(cfg, KEY)
    if loader.get('sampler') is None or loader.get('batch_size') is None:
        raise RecipeError(
            f'synthaug: {KEY} needs sampler and batch_size in train_dataloader.', "Add sampler=dict(type='DefaultSampler', shuffle=True) and batch_size."
        )
    loader.pop('shuffle', None)
    batches: dict[str, Any] = {'type': 'synthaug_plugins.SeededBatches'}
    if loader.get('batch_sampler') is not None:
        batches['base'] = loader['batch_sampler']
    if loader.pop('drop_last', False):
        batches['drop_last'] = True
    if seed is not None:
        batches['seed'] = seed
    dataset = {'type': 'synthaug_plugins.SeededDataset', 'dataset': loader['dataset']}
    only = loader.pop('num_batch_per_epoch', None)
    if only is not None:
        dataset |= {'first_batches': only, 'batch_size': loader['batch_size']}
    loader['dataset'], loader['batch_sampler'] = dataset, batches
    if all(type_name(hook) != 'MixResumeHook' for hook in cfg.get('custom_hooks') or []):
        add_hook(cfg, {'type': 'synthaug_plugins.MixResumeHook'})
    add_hook(cfg, {'type': 'synthaug_plugins.SeededStepsHook'})
    add_hook(cfg, {'type': 'synthaug_plugins.ResumedValidationHook'})
