"""From a model's config (plain values) to its denoiser."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from synthaug_plugins.diffusion.adm import ADM
from synthaug_plugins.diffusion.ddpmpp import DDPMpp
from synthaug_plugins.diffusion.level_classifier import Features, LevelClassifier
from synthaug_plugins.diffusion.preconditioning import EDMPrecond, IDDPMPrecond, Precond, VEPrecond, VPPrecond
from synthaug_plugins.errors import ModelError, nearest

KINDS: dict[str, type[Precond]] = {'edm': EDMPrecond, 'vp': VPPrecond, 've': VEPrecond, 'iddpm': IDDPMPrecond}
NETWORKS: dict[str, type[nn.Module]] = {'ddpmpp': DDPMpp, 'adm': ADM}

_REQUIRED = {'kind', 'resolution', 'channels', 'classes', 'label_conditioning', 'network'}
_OPTIONAL = {'label_dropout', 'augment_labels', 'sigma_data'}


def check_denoiser_config(config: Mapping[str, Any]) -> None:
    """Refuse (ModelError) a config that `build_denoiser` cannot build, naming the key. Builds the network without memory for its weights.

    Keys:
        kind: 'edm', 'vp', 've' or 'iddpm': how the network becomes a denoiser, see `preconditioning`.
        resolution: pixels per side.
        channels: 1 (grey) or 3 (RGB).
        classes: distinct names of the classes in the training data, in label order; [] when they had none.
        label_conditioning: whether the network is told the class.
        label_dropout: share of training images whose label was hidden (default 0). Above 0 the model also runs without labels.
        augment_labels: how many numbers tell the network what augmentation did to an image, `Augmentation.label_dim`; 0 (default)
            for a network that is not told.
        sigma_data: root mean square of the training images. Required for 'edm'; other kinds carry it as a fact.
        sigma_min, sigma_max ('edm', 've'), beta_d, beta_min, M, epsilon_t ('vp'), C_1, C_2, M ('iddpm'): constants of the kind,
            with the defaults of its class.
        network: dict(type='ddpmpp' or 'adm', ...) with the options of `DDPMpp` or `ADM`, all of them optional.
    """
    with torch.device('meta'):
        _build(config)


def build_denoiser(config: Mapping[str, Any]) -> Precond:
    """The denoiser of a config, with fresh weights (on CPU, float32). See `check_denoiser_config` for its keys.

    Raises:
        ModelError: a key is missing, unknown or wrong.
    """
    return _build(config)


def parameter_count(config: Mapping[str, Any]) -> int:
    """Parameters of the network of a config, counted without making them.

    Raises:
        ModelError: see `check_denoiser_config`.
    """
    with torch.device('meta'):
        return sum(p.numel() for p in _build(config).parameters())


def build_level_classifier(config: Mapping[str, Any], features: Features | None = None) -> LevelClassifier:
    """The classifier of levels of a config, with fresh weights (on CPU, float32).

    Keys of a config:
        kind: 'levels'.
        resolution, channels, classes: of the images, see `check_denoiser_config`.
        label_conditioning: whether the classifier is told the class.
        sigma_data, sigma_min, sigma_max: see `LevelClassifier`.
        levels: dict(count=L, ...).
        features: None, or dict(size=(C, h, w), ...): of what it looks at in place of the images.
        network: dict(loss='ordinal', ...): the options of `LevelClassifier`, all of them optional.

    Args:
        features: what gives the features; may be left out where only weights are of interest.

    Raises:
        ModelError: a key is missing, unknown or wrong.
    """
    known = ('kind', 'resolution', 'channels', 'classes', 'label_conditioning', 'sigma_data', 'sigma_min', 'sigma_max', 'levels', 'features', 'network')
    if config.get('kind') != 'levels':
        raise ModelError(f'The model config says kind = {config.get("kind")!r}, not a classifier of levels.', 'Make one with `synthaug learn minority`.')
    for key in known:
        if key not in config:
            raise ModelError(f'The config of the classifier of levels lacks the key {key!r}.', 'Learn the classifier again.')
    for key in config:
        if key not in known:
            raise ModelError(f'The config of the classifier of levels has the unknown key {key!r}.', nearest(key, known))
    for key, default in (('resolution', 1), ('channels', 1), ('label_conditioning', False), ('sigma_data', 0.5), ('sigma_min', 0.5), ('sigma_max', 0.5)):
        _checked(key, config[key], default)
    if not isinstance(config['network'], Mapping):
        raise ModelError(f'The model config says network = {config["network"]!r}.', "Write dict(loss='ordinal', ...).")
    if not 0 < config['sigma_data'] < math.inf:
        raise ModelError(f'The model config says sigma_data = {config["sigma_data"]!r}.', 'It is the root mean square of the images, about 0.5.')
    _check_classes(config)
    defaults = _keyword_options(LevelClassifier)
    options = dict(config['network'])
    for key in options:
        if key not in defaults:
            raise ModelError(f'The classifier of levels has no option {key!r}.', nearest(key, defaults))
        options[key] = _checked(key, options[key], defaults[key])
    channels, resolution = _shown(config)
    return LevelClassifier(
        config['levels']['count'],
        resolution,
        channels,
        len(config['classes']) if config['label_conditioning'] else 0,
        config['sigma_data'],
        config['sigma_min'],
        config['sigma_max'],
        features,
        **options,
    )


def _shown(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels and height of what a classifier of levels looks at."""
    features = config['features']
    if features is None:
        return config['channels'], config['resolution']
    size = features.get('size') if isinstance(features, Mapping) else None
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(_whole(n) and n > 0 for n in size):
        raise ModelError(f'The config of the classifier of levels says features = {reprlib.repr(features)}.', 'Learn the classifier again.')
    return size[0], size[1]


def _build(config: Mapping[str, Any]) -> Precond:
    _check_values(config)
    options = dict(config['network'])
    network = NETWORKS[options.pop('type')]
    for key, default in _keyword_options(network).items():
        if key in options:
            options[key] = _checked(key, options[key], default)
    num_classes = len(config['classes']) if config['label_conditioning'] else 0
    kind = KINDS[config['kind']]
    constants = {key: config[key] for key in _constants(kind) if key in config}
    raw = network(config['resolution'], config['channels'], num_classes, config.get('augment_labels', 0), **options)
    denoiser = kind(raw, **constants)
    if not 0 <= denoiser.sigma_min < denoiser.sigma_max:
        what = f'The model config makes noise levels from {denoiser.sigma_min:g} to {denoiser.sigma_max:g}.'
        raise ModelError(what, f'Correct the constants of kind {config["kind"]!r}: the lowest must be below the highest.')
    return denoiser


def _constants(kind: type[Precond]) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name != 'network']


def _keyword_options(network: type[nn.Module]) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(network).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _check_values(config: Mapping[str, Any]) -> None:
    """Everything that can be refused before the network is built."""
    for key in sorted(_REQUIRED - set(config)):
        raise ModelError(f'The model config lacks the key {key!r}.', 'Save the model again, or add the key to its config.json.')
    if str(config['kind']) not in KINDS:
        raise ModelError(f'The model config says kind = {config["kind"]!r}.', nearest(str(config['kind']), KINDS))
    constants = _constants(KINDS[config['kind']])
    for key in config:
        if key not in _REQUIRED | _OPTIONAL | {*constants}:
            whose = [kind for kind, c in KINDS.items() if key in _constants(c)]
            cure = f'It belongs to {" and ".join(whose)}.' if whose else nearest(key, _REQUIRED | _OPTIONAL | {*constants})
            raise ModelError(f'The model config of kind {config["kind"]!r} has the unknown key {key!r}.', cure)
    for key, default in (('resolution', 1), ('channels', 1), ('label_conditioning', False), ('augment_labels', 1), ('label_dropout', 0.0), ('M', 1)):
        if key in config:
            _checked(key, config[key], default)
    for key in {*constants, 'sigma_data'} & set(config):
        value = _checked(key, config[key], 0.0)
        if not (0 < value < math.inf or (key, value) in (('sigma_min', 0), ('sigma_max', math.inf))):
            cure = 'It is the root mean square of the images, about 0.5.' if key == 'sigma_data' else 'It must be positive and finite.'
            raise ModelError(f'The model config says {key} = {config[key]!r}.', cure)
    if config['kind'] == 'edm' and 'sigma_data' not in config:
        raise ModelError("The model config of kind 'edm' lacks the key 'sigma_data'.", 'It is the root mean square of the training images, about 0.5.')
    if config['channels'] not in (1, 3):
        raise ModelError(f'The model config says channels = {config["channels"]!r}.', 'Images have 1 channel (grey) or 3 (RGB).')
    if not 0 <= config.get('label_dropout', 0) < 1:
        raise ModelError(f'The model config says label_dropout = {config["label_dropout"]!r}.', 'It is a share of the training images, about 0.1.')
    if config.get('label_dropout', 0) and not config['label_conditioning']:
        raise ModelError(
            f'The model config says label_dropout = {config["label_dropout"]!r} and label_conditioning = False.',
            'There is no label to drop: set label_dropout = 0.',
        )
    if config.get('augment_labels', 0) < 0:
        raise ModelError(f'The model config says augment_labels = {config["augment_labels"]!r}.', 'Use 0, or the label_dim of the augmentation.')
    _check_classes(config)
    _check_network(config)


def _check_classes(config: Mapping[str, Any]) -> None:
    classes = config['classes']
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ModelError(f'The model config says classes = {reprlib.repr(classes)}.', 'It must be a list of names, each once, in label order.')
    if config['label_conditioning'] and not classes:
        raise ModelError('The model config says label_conditioning = True but names no classes.', 'Name them in label order.')


def _check_network(config: Mapping[str, Any]) -> None:
    network = config['network']
    if not isinstance(network, Mapping):
        raise ModelError(f'The model config says network = {network!r}.', "Write network = dict(type='ddpmpp', ...).")
    if str(network.get('type')) not in NETWORKS:
        raise ModelError(f'The model config says network type = {network.get("type")!r}.', nearest(str(network.get('type')), NETWORKS))
    known = {'type', *_keyword_options(NETWORKS[network['type']])}
    for key in network:
        if key not in known:
            raise ModelError(f'The model config has the unknown network option {key!r}.', nearest(key, known))
    if network.get('learned_variance') and config['kind'] != 'iddpm':
        raise ModelError(f'The network option learned_variance = True does not fit kind = {config["kind"]!r}.', "Only kind 'iddpm' has such models.")


def _checked(key: str, value: Any, default: Any) -> Any:
    """The value, if it has the type of the default: a whole number for 1, any number for 0.5, a list or tuple of whole numbers for (1,)."""

    if isinstance(default, bool | str):
        fits, wanted = isinstance(value, type(default)), 'True or False' if isinstance(default, bool) else 'text'
    elif isinstance(default, tuple):
        fits, wanted = isinstance(value, list | tuple) and all(_whole(v) for v in value), 'a list of whole numbers'
    elif isinstance(default, float):
        fits, wanted = _whole(value) or isinstance(value, float), 'a number'
    else:
        fits, wanted = _whole(value), 'a whole number'
    if not fits:
        raise ModelError(f'The model config says {key} = {value!r}.', f'It must be {wanted}.')
    return tuple(value) if isinstance(default, tuple) else value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
