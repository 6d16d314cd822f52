"""`synthaug = dict(clip=dict(...))`: turn a recipe into the tuning of a CLIP classifier, its data kept."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.hookspecs import hookimpl
from synthaug_plugins.training.recipe_edit import add_hook, leaf_datasets, take_options, train_loader, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

    from synthaug_plugins.curation.clip_model import ClipModel

KEY = 'clip'
OPTIONS = {
    'model': "the CLIP: 'embedded:digits_clip', a folder in open_clip's layout, 'hf-hub:ORG/NAME' or an architecture such as 'RN50'",
    'pretrained': "for an architecture: a tag or a weight file; default 'openai'",
    'revision': "commit or tag of the hub's repository",
    'quick_gelu': 'for a weight file, see ClipModel',
    'train': "'cached' (default): the head, on features made once; 'head': the head, through the frozen tower with augmentation; 'encoder': tower and head",
    'tune': "train='encoder': regular expressions for the tower's parameters; '' (default) is all of them",
    'lora': "train='encoder': low-rank adapters instead, dict(r=8, alpha=16, dropout=0.0, targets=None)",
    'augment': "train='head' or 'encoder': 'crop_flip' (default), 'none', or 'recipe' to keep the recipe's own train pipeline",
    'classes': 'class names in label order; default: those of the training set',
    'templates': "what the text tower is told: one template with {}, several, or an ensemble's name; default: the data set's own, else 'a photo of a {}'",
    'dataset': "class names and wording of one of the paper's data sets, such as 'eurosat'",
    'names': 'a file of class names',
    'hints': 'say names of several senses with their hint, default True',
    'init': "the head: 'text' (default) starts as CLIP's zero-shot classifier, 'random'",
    'loss': "config of the head's loss; default CrossEntropyLoss",
    'cache': "train='cached': folder of the features, default ~/.cache/synthaug/features",
    'native_px': "train='cached': reduce larger images to this shorter side first",
    'device': "train='cached': where missing features are made, default 'auto'",
}
_MODES = ('cached', 'head', 'encoder')
_AUGMENTS = ('crop_flip', 'none', 'recipe')
_CLIP = ('model', 'pretrained', 'revision', 'quick_gelu')
_ONLY_FOR = {'tune': ('encoder',), 'lora': ('encoder',), 'augment': ('head', 'encoder'), 'cache': ('cached',), 'native_px': ('cached',), 'device': ('cached',)}
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@hookimpl
def synthaug_option_names() -> Sequence[str]:
    """This plugin reads `clip`."""
    return (KEY,)


@hookimpl(wrapper=True)
def synthaug_configure(cfg: Config, options: dict[str, Any]) -> Generator[None, Any, Any]:
    """Exchange model, preprocessor and pipelines before the other plugins look at them; lay features over the data sets that they made."""
    given = take_options(options, KEY, OPTIONS)
    if given is None:
        return (yield)
    given = {k: v for k, v in given.items() if v is not None}
    mode = _check(given)
    train_loader(cfg, KEY)
    from synthaug_plugins.curation.clip_model import ClipModel

    clip = ClipModel(**{k: given[k] for k in _CLIP if k in given})
    clip.check()
    classes = [str(name) for name in given.get('classes') or recipe_classes(cfg)]
    _exchange_model(cfg, given, mode, classes)
    cfg['data_preprocessor'] = _preprocessor(clip, mode, len(classes))
    for key in _LOADERS:
        if cfg.get(key):
            _exchange_pipelines(cfg[key], clip, given, mode, key == 'train_dataloader')
    add_hook(cfg, {'type': 'synthaug_plugins.ClipClassesHook'})
    if mode != 'cached' and 'frozen_bn' not in options and clip.has_batch_norm:
        add_hook(cfg, {'type': 'synthaug_plugins.FrozenBNHook', 'modules': '^backbone'})
    result = yield
    if mode == 'cached':
        source = {k: given[k] for k in (*_CLIP, 'cache', 'native_px', 'device') if k in given}
        for key in _LOADERS:
            if cfg.get(key):
                cfg[key]['dataset'] = {'type': 'synthaug_plugins.FeatureDataset', 'dataset': cfg[key]['dataset'], **source}
    return result


def _check(given: Mapping[str, Any]) -> str:
    if not isinstance(given.get('model'), str):
        raise RecipeError('synthaug: clip needs model.', "Write clip=dict(model='RN50'), or a folder in open_clip's layout.")
    mode, augment = given.get('train', 'cached'), given.get('augment', 'crop_flip')
    if mode not in _MODES:
        raise RecipeError(f'synthaug: clip: train = {mode!r} is unknown.', nearest(str(mode), _MODES))
    if augment not in _AUGMENTS:
        raise RecipeError(f'synthaug: clip: augment = {augment!r} is unknown.', nearest(str(augment), _AUGMENTS))
    for key, modes in _ONLY_FOR.items():
        if key in given and mode not in modes:
            raise RecipeError(f'synthaug: clip: {key} means nothing with train = {mode!r}.', f'It belongs to {" and ".join(map(repr, modes))}.')
    return str(mode)


def _exchange_model(cfg: Config, given: Mapping[str, Any], mode: str, classes: list[str]) -> None:
    source = {k: given[k] for k in _CLIP if k in given}
    backbone: dict[str, Any] = {'type': 'synthaug_plugins.CachedFeatures'}
    if mode != 'cached':
        backbone = {'type': 'synthaug_plugins.OpenClipVisual', **source}
    if mode == 'encoder':
        backbone |= {'lora': given['lora']} if 'lora' in given else {'tune': given.get('tune', '')}
        if 'lora' in given and 'tune' in given:
            backbone['tune'] = given['tune']  # refused there
    head = {'type': 'synthaug_plugins.ClipHead', 'classes': classes, **source}
    head |= {k: given[k] for k in ('templates', 'dataset', 'names', 'hints', 'init') if k in given}
    head['loss'] = given.get('loss') or {'type': 'mmpretrain.CrossEntropyLoss', 'loss_weight': 1.0}
    cfg['model'] = {'type': 'mmpretrain.ImageClassifier', 'backbone': backbone, 'head': head}


def _preprocessor(clip: ClipModel, mode: str, n_classes: int) -> dict[str, Any]:
    if mode == 'cached':
        return {'type': 'synthaug_plugins.FeaturePreprocessor', 'num_classes': n_classes}
    prepare = clip.preprocess_cfg
    scaled = {key: [255 * float(v) for v in prepare[key]] for key in ('mean', 'std')}
    return {'type': 'mmpretrain.ClsDataPreprocessor', 'num_classes': n_classes, 'to_rgb': True, **scaled}


def _exchange_pipelines(loader: Any, clip: ClipModel, given: Mapping[str, Any], mode: str, training: bool) -> None:
    augment = given.get('augment', 'crop_flip') if training else 'none'
    if mode == 'cached':
        loader['num_workers'], loader['persistent_workers'] = 0, False  # a sample is a look-up: processes would cost more than they save
        pipeline = [{'type': 'mmpretrain.PackInputs'}]
    elif augment == 'recipe':
        return
    else:
        pipeline = live_pipeline(clip, augment == 'crop_flip')
    for dataset in leaf_datasets(loader['dataset']):
        dataset['pipeline'] = [dict(step) for step in pipeline]


def live_pipeline(clip: ClipModel, augment: bool) -> list[dict[str, Any]]:
    """MMPretrain transforms that prepare images as the CLIP's own preprocessing does; with `augment`, a random crop (half of the area at least, as
    most objects need to be seen) and flips in place of the centre crop.

    Raises:
        RecipeError: the CLIP prepares images in a way that MMPretrain's transforms do not have.
    """
    prepare = clip.preprocess_cfg
    size, mode = prepare['size'], prepare['resize_mode']
    if not isinstance(size, int) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int) or mode not in ('shortest', 'squash'):
        raise RecipeError(f'{clip.name!r} prepares images with resize_mode={mode!r} to {size} pixels, which no transform here does.', "Use train='cached'.")
    how = {'backend': 'pillow', 'interpolation': 'bilinear' if prepare['interpolation'] == 'bilinear' else 'bicubic'}
    # Without a scope: MMPretrain's inferencer knows it by this name only.
    load, pack = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}, {'type': 'mmpretrain.PackInputs'}
    if augment:
        crop = {'type': 'mmpretrain.RandomResizedCrop', 'scale': size, 'crop_ratio_range': (0.5, 1.0), **how}
        return [load, crop, {'type': 'mmpretrain.RandomFlip', 'prob': 0.5, 'direction': 'horizontal'}, pack]
    if mode == 'squash':
        return [load, {'type': 'mmpretrain.Resize', 'scale': (size, size), **how}, pack]
    return [load, {'type': 'mmpretrain.ResizeEdge', 'scale': size, 'edge': 'short', **how}, {'type': 'mmpretrain.CenterCrop', 'crop_size': size}, pack]


def recipe_classes(cfg: Config) -> Sequence[str]:
    """Class names of a recipe's training set in label order, as far as its config or its folder says them.

    Raises:
        RecipeError: they cannot be known without building the data set.
    """
    for dataset in leaf_datasets(train_loader(cfg, KEY)['dataset']):
        named = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
        if named and not isinstance(named, str):
            return list(named)
        if type_name(dataset) == 'StoreDataset':
            from synthaug_plugins.store.store import Store

            return Store.open(dataset['store']).classes
        prefix = dataset.get('data_prefix') or ''
        folder = Path(dataset.get('data_root') or '') / (prefix if isinstance(prefix, str) else prefix.get('img_path', ''))
        if type_name(dataset) in ('CustomDataset', 'FewShotDataset') and not dataset.get('ann_file') and folder.is_dir():
            return sorted(p.name for p in folder.iterdir() if p.is_dir())
        if type_name(dataset) in ('CustomDataset', 'FewShotDataset') and not dataset.get('ann_file') and '://' not in str(folder):
            raise RecipeError(f'synthaug: clip: the data folder {str(folder)!r} of the training set does not exist.', 'Set data_root.')
        from mmengine.registry import DATASETS

        with DATASETS.switch_scope_and_registry(cfg.get('default_scope', 'mmpretrain')) as registry:
            found = registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
        known = (getattr(found, 'METAINFO', None) or {}).get('classes')
        if known:
            return list(known)
    raise RecipeError('synthaug: clip: the training set does not say its classes.', "Write clip=dict(classes=['...', ...]), in label order.")
