"""`synthaug = dict(mix=dict(...))`: train on real and synthetic images together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.training.recipe_edit import add_hook, learns_without_labels, preprocessor, read_any_address, take_options, train_loader, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

    from synthaug_plugins.mixing.rule import MixRule

KEY = 'mix'
OPTIONS = {
    'store': 'folder of the store to draw from',
    'stores': 'several stores: [dict(store=folder, weight=1.0, select=None), ...]; weight is the share of the draws',
    'select': "which records of `store`: a condition such as 'clip_p > 1/102', or dict(where=, top_k=, by=, sample=, seed=, allow_empty=)",
    'mode': 'per_sample (default), per_batch, two_stream, concat or phased',
    'alpha': 'per_sample, phased: share of synthetic images, 0 to 1 (default 0.5); a list [(epoch, alpha), ...]; '
    "or dict(start=, end=, begin=0, end_epoch=, shape='linear' or 'cosine')",
    'partner': "what takes a real image's place: 'source' (a variant of it), 'class' (default) or 'any' (default where the model learns without labels)",
    'ratio': 'per_batch, two_stream: (real, synthetic), default (1, 1)',
    'phases': "phased: [('synthetic', 30), ('real', 30)]; also 'mix', which uses alpha",
    'synthetic_weight': 'factor on the loss of synthetic images, default 1.0',
    'soft_labels': 'dict(column=..., blend=1.0, temperature=None): train synthetic images on class probabilities from a score column, blended '
    'with the hard label; a temperature T says that the column holds logits, as SoftLabels writes them: softmax(logits / T). The SCE loss of '
    "He et al. is dict(column='teacher_logits', blend=0.5, temperature=2.0)",
    'sources': "'in_real_set' (default): leave out variants of images that are not in the real training set; 'any': keep them",
    'source_root': "folder that the variants' sources (<class>/<file>) are relative to; default: the real dataset's own",
    'epoch_steps': "batches per epoch, or 'synthetic' for as many as one pass over the synthetic images takes (per_batch, two_stream); default: one "
    'pass over the real set, as without mixing',
    'seed': "of the mixing decisions; default: the sampler's",
}
_RULE = ('mode', 'alpha', 'partner', 'ratio', 'phases', 'synthetic_weight')


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `mix`."""
    return (KEY,)


@hookimpl
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> None:
    """Wrap the recipe's dataset and sampler; exchange head and preprocessor only where the mode needs it."""
    mix = take_options(options, KEY, OPTIONS)
    if mix is None:
        return
    from synthaug_plugins.mixing.rule import mix_rule

    loader = train_loader(cfg, KEY)
    unlabelled = learns_without_labels(cfg)
    if unlabelled and mix.get('partner') is None and mix.get('mode') not in ('two_stream', 'concat'):
        mix['partner'] = 'any'
    rule = mix_rule(**{k: mix[k] for k in _RULE if mix.get(k) is not None})
    _check_loader(loader, rule)
    if unlabelled:
        _refuse_what_needs_labels(cfg, rule, mix)
    _check_phases(cfg, rule, mix)
    read_any_address(cfg, KEY)
    dataset: dict[str, Any] = {'type': 'synthaug_plugins.MixedDataset', 'real': loader['dataset'], 'stores': _stores(mix)}
    if rule.mode == 'concat':
        dataset['concat'] = True
    if unlabelled and mix.get('partner') != 'class':
        dataset['labels'] = False
    dataset |= {k: mix[k] for k in ('sources', 'source_root', 'soft_labels') if mix.get(k) is not None}
    if _keeps_bgr(cfg):
        dataset['channel_order'] = 'bgr'
    batch_sampler: dict[str, Any] = {'type': 'synthaug_plugins.MixBatchSampler', 'mode': rule.mode}
    batch_sampler |= {k: mix[k] for k in (*_RULE, 'epoch_steps', 'seed') if mix.get(k) is not None}
    if loader.pop('drop_last', False):
        batch_sampler['drop_last'] = True
    loader.pop('shuffle', None)
    loader['dataset'], loader['batch_sampler'] = dataset, batch_sampler
    add_hook(cfg, {'type': 'synthaug_plugins.MixResumeHook'})
    if rule.weighs:
        _weigh_head(cfg, rule)
    if rule.weighs or mix.get('soft_labels') is not None:
        _exchange_preprocessor(cfg)
    if mix.get('soft_labels') is not None:
        _check_soft(cfg, mix)


def _stores(mix: dict[str, Any]) -> list[dict[str, Any]]:
    from synthaug_plugins.mixing.records import check_store_spec
    from synthaug_plugins.store.store import Store

    for key, kind in (('source_root', str), ('seed', int)):
        if mix.get(key) is not None and not isinstance(mix[key], kind):
            raise RecipeError(f'synthaug: mix: {key} = {mix[key]!r} is of the wrong kind.', f'Give {"a folder" if kind is str else "a whole number"}.')
    if (mix.get('store') is None) == (mix.get('stores') is None):
        raise RecipeError('synthaug: mix needs either store or stores.', "Write mix=dict(store='stores/name'), or stores=[dict(store=..., weight=...), ...].")
    if mix.get('store') is not None:
        specs = [{'store': mix['store'], 'select': mix.get('select')}]
    elif mix.get('select') is not None:
        raise RecipeError('synthaug: mix has select beside stores.', 'Put select into the entries of stores.')
    elif not isinstance(mix['stores'], list | tuple):
        raise RecipeError(f'synthaug: mix: stores = {mix["stores"]!r} is not a list.', 'Write stores=[dict(store=..., weight=...), ...].')
    else:
        specs = [spec if isinstance(spec, dict) else {'store': spec} for spec in mix['stores']]
    checked = [check_store_spec(spec) for spec in specs]
    if mix.get('mode') == 'concat' and any(spec['weight'] != 1 for spec in checked):
        raise RecipeError("synthaug: a store's weight has no meaning in mode 'concat'.", 'Remove it, or choose fewer records with select.')
    for spec in checked:
        Store.open(spec['store'])  # a store that is missing is said now, not after the model was built
    return [{k: v for k, v in spec.items() if v is not None} for spec in checked]


def _check_loader(loader: Any, rule: MixRule) -> None:
    if type_name(loader.get('batch_sampler') or {}) == 'PromptGroupSampler':
        raise RecipeError('synthaug: mix has no place here: images are learned from by their prompts, and real ones have none.', 'Remove mix.')
    if loader.get('batch_sampler') is not None:
        raise RecipeError('synthaug: mix composes the batches, but train_dataloader has a batch_sampler already.', 'Remove it from the recipe, or remove mix.')
    if loader.get('sampler') is None or loader.get('batch_size') is None:
        raise RecipeError(
            'synthaug: mix needs sampler and batch_size in train_dataloader.', "Add sampler=dict(type='DefaultSampler', shuffle=True) and batch_size."
        )
    if rule.mode in ('per_batch', 'two_stream'):
        rule.synthetic_of(loader['batch_size'])


def _refuse_what_needs_labels(cfg: Config, rule: MixRule, mix: dict[str, Any]) -> None:
    kind = type_name(cfg['model'])
    if rule.weighs:
        what = f'mode {rule.mode!r}' if rule.synthetic_weight == 1 else f'synthetic_weight = {rule.synthetic_weight}'
        raise RecipeError(
            f'synthaug: mix: {what} weighs the loss of each image, and {kind} has no loss of single images.',
            "Use mode 'per_batch' with ratio=(real, synthetic), or 'per_sample' with alpha, and leave synthetic_weight out.",
        )
    if mix.get('soft_labels') is not None:
        raise RecipeError(f'synthaug: mix: soft_labels have no effect: {kind} learns without labels.', 'Remove soft_labels.')


def _check_phases(cfg: Config, rule: MixRule, mix: dict[str, Any]) -> None:
    max_epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    if rule.mode == 'phased' and max_epochs is not None:
        total = sum(epochs for _, epochs in mix['phases'])
        if total != max_epochs:
            raise RecipeError(f'synthaug: the phases last {total} epochs, the recipe trains for {max_epochs}.', 'Make the two equal.')


def _keeps_bgr(cfg: Config) -> bool:
    """Whether images held in memory are BGR: then the preprocessor turns channels round."""
    own = cfg['model'].get('data_preprocessor') if cfg.get('model') else None
    return bool((own if own is not None else cfg.get('data_preprocessor') or {}).get('to_rgb', False))


def _weigh_head(cfg: Config, rule: MixRule) -> None:
    model = cfg['model']
    head = model.get('head')
    why = f'mode {rule.mode!r}{"" if rule.synthetic_weight == 1 else f" with synthetic_weight={rule.synthetic_weight}"}'
    if not head or 'type' not in head:
        raise RecipeError(
            f'synthaug: {why} weighs samples in the head, and the model {type_name(model)} has none.', "Use mode 'per_sample' or 'per_batch' instead."
        )
    if (model.get('train_cfg') or {}).get('augments') or preprocessor(cfg).get('batch_augments'):
        raise RecipeError(f'synthaug: {why} gives samples different loss weights, which batch augments (Mixup, CutMix) would blend.', 'Remove one of the two.')
    model['head'] = {**head, 'type': 'synthaug_plugins.WeightedHead', 'base': head['type']}


def _exchange_preprocessor(cfg: Config) -> None:
    found = preprocessor(cfg)
    if type_name(found) == 'FeaturePreprocessor':
        return  # it is one of these
    if type_name(found) not in ('', 'ClsDataPreprocessor'):
        raise RecipeError(
            f'synthaug: the recipe preprocesses with {type_name(found)}, not with ClsDataPreprocessor.',
            "Use mode 'per_batch' without soft_labels.",
        )
    found['type'] = 'synthaug_plugins.MixDataPreprocessor'


def _check_soft(cfg: Config, mix: dict[str, Any]) -> None:
    from synthaug_plugins.mixing.soft_labels import check_soft_labels

    check_soft_labels(mix['soft_labels'])
    if (cfg['model'].get('head') or {}).get('cal_acc'):
        raise RecipeError('synthaug: soft_labels leave no hard label to count accuracy with in training.', 'Set cal_acc=False in the head.')
