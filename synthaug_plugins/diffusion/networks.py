"""From a model's config (plain values) to its denoiser."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from synthaug_plugins.diffusion.denoiser import EDMPrecond
from synthaug_plugins.diffusion.unet import UNet
from synthaug_plugins.errors import ModelError, nearest

_REQUIRED = {'kind', 'resolution', 'channels', 'classes', 'label_conditioning', 'sigma_data', 'network'}
_OPTIONAL = {'label_dropout', 'sigma_min', 'sigma_max'}
_NETWORK_OPTIONS = {p.name for p in inspect.signature(UNet).parameters.values() if p.kind is p.KEYWORD_ONLY}


def check_denoiser_config(config: Mapping[str, Any]) -> None:
    """Refuse (ModelError) a config that `build_denoiser` cannot build, naming the key.

    Keys:
        kind: 'edm'.
        resolution: pixels per side.
        channels: 1 (grey) or 3 (RGB).
        classes: names of the classes in the training data, in label order; [] when they had none.
        label_conditioning: whether the network is told the class.
        label_dropout: share of training images whose label was hidden (default 0). Above 0 the model also runs without labels.
        sigma_data: see `EDMPrecond`.
        sigma_min, sigma_max: supported noise levels (default 0 and infinity).
        network: the options of `UNet`, all of them optional.
    """
    for key in sorted(_REQUIRED - set(config)):
        raise ModelError(f'The model config lacks the key {key!r}.', 'Save the model again, or add the key to its config.json.')
    for key in config:
        if key not in _REQUIRED | _OPTIONAL:
            raise ModelError(f'The model config has the unknown key {key!r}.', nearest(key, _REQUIRED | _OPTIONAL))
    if config['kind'] != 'edm':
        raise ModelError(f'The model config says kind = {config["kind"]!r}.', "Only 'edm' is known here.")
    if config['channels'] not in (1, 3):
        raise ModelError(f'The model config says channels = {config["channels"]!r}.', 'Images have 1 channel (grey) or 3 (RGB).')
    if not config['sigma_data'] > 0:
        raise ModelError(f'The model config says sigma_data = {config["sigma_data"]!r}.', 'It is the root mean square of the images, about 0.5.')
    if config['label_conditioning'] and not config['classes']:
        raise ModelError('The model config says label_conditioning = True but names no classes.', 'Name them in label order.')
    for key in config['network']:
        if key not in _NETWORK_OPTIONS:
            raise ModelError(f'The model config has the unknown network option {key!r}.', nearest(key, _NETWORK_OPTIONS))
    levels = len(config['network'].get('channel_mult', (1, 2)))
    if config['resolution'] < 2 or config['resolution'] % 2 ** (levels - 1):
        raise ModelError(f'The resolution {config["resolution"]} cannot be halved {levels - 1} times.', 'Use fewer entries in channel_mult.')


def build_denoiser(config: Mapping[str, Any]) -> EDMPrecond:
    """The denoiser of a config, with fresh weights (on CPU, float32). See `check_denoiser_config` for its keys.

    Raises:
        ModelError: a key is missing, unknown or wrong.
    """
    check_denoiser_config(config)
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config['network'].items()}
    num_classes = len(config['classes']) if config['label_conditioning'] else 0
    network = UNet(config['resolution'], config['channels'], num_classes, **options)
    return EDMPrecond(network, config['sigma_data'], config.get('sigma_min', 0.0), config.get('sigma_max', math.inf))
