"""From a plain state dict of somebody else's making to a model folder of our own. No code of the file runs."""

from __future__ import annotations

import math
import os
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from synthaug_plugins.diffusion import build_denoiser
from synthaug_plugins.diffusion.blocks import Attention
from synthaug_plugins.diffusion.unet import EncoderDecoder
from synthaug_plugins.errors import ModelError
from synthaug_plugins.weights import file_hash, save_model

LICENCE_NOTE = (
    'Weights keep the licence of whoever published them. Those that NVIDIA published for EDM and EDM2 are CC BY-NC-SA 4.0: '
    'no commercial use, and whatever is adapted from them is shared alike.'
)

# What wrappers and trainers put before the names of a network: torch's own, EDM's, ours.
_PREFIXES = ('module.', '_orig_mod.', 'model.', 'ema.', 'net.', 'network.')
# Entries of wrappers that are not weights: the noise levels of EDM's iDDPM wrapper, the counter of torch's weight averages.
_NOT_WEIGHTS = {'u', 'n_averaged'}
_EXPORT = (
    'Export the plain state dict where the file was made, with its own code importable: '
    "safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, 'plain.safetensors')."
)
_TOP = {
    'map_noise.freqs': 'frequencies',
    'map_label': 'embed_label',
    'map_augment': 'embed_augment',
    'map_layer0': 'embed0',
    'map_layer1': 'embed1',
    'out_norm': 'last_norm',
    'out_conv': 'last',
}
_PARTS = {'affine': 'modulate', 'norm2': 'attention.norm', 'qkv': 'attention.qkv', 'proj': 'attention.project'}
_PLACE = re.compile(r'(enc|dec)\.(\d+)x\2_(conv|down|up|block|in|aux_residual|aux_norm|aux_conv)(\d*)\.(.+)')


def convert_state_dict(source: Path, config: Mapping[str, Any], out: Path, licence: str | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Write a model folder from a plain state dict of one of our networks, under our names or those of the official EDM networks.

    Every name and shape is compared with what the config builds. What a state dict cannot tell, the config must say rightly: the
    kind, sigma_data, the order of the classes, dropout, head_channels. The official names and layouts stand here as facts of the
    format; they have not been tried on an official file. Compare samples with published ones before you trust a conversion.

    Args:
        source: .safetensors, or a file of torch.save that holds names and tensors only.
        config: of the model, see `check_denoiser_config`.
        out: folder to make.
        licence: of the weights, for the card.
        dtype: of the weights on disk. Random frequencies (NCSN++) stay float32.

    Returns: the card that was written.

    Raises:
        ModelError: the folder is not new, the file wants to run code or is no state dict, or its tensors do not fit the config.
    """
    check_new_folder(out)
    with torch.device('meta'):
        network = cast(EncoderDecoder, build_denoiser(config).network)
    found = _strip(read_state_dict(source))
    official = any(name.startswith('enc.') for name in found)
    if official:
        found = from_edm_names(found, network, config['resolution'])
    _compare({name: tuple(t.shape) for name, t in network.state_dict().items()}, found, source)
    weights = {f'network.{name}': t.to(torch.float32 if name == 'frequencies' else dtype, copy=True) for name, t in found.items()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ModelError(f'{name!r} of {str(source)!r} is not finite in {dtype}.', 'Convert to float32; if it fails there, the weights are damaged.')
    card = {
        'name': out.name,
        'what': f'Converted from {source.name}.',
        'licence': licence,
        'licence_note': LICENCE_NOTE,
        'source': {'file': source.name, 'sha256': file_hash(source), 'names': 'official EDM' if official else 'own'},
        'parameters': sum(p.numel() for p in network.parameters()),
        'weights': str(dtype).removeprefix('torch.'),
    }
    save_model(out, dict(config), weights, card)
    return card


def check_new_folder(out: Path) -> None:
    """Refuse (ModelError) a folder for a new model that holds something or cannot be made; nothing is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f'out = {str(out)!r} exists and is no empty folder.', 'Choose another folder; nothing was touched.')
    above = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ModelError(f'out = {str(out)!r} cannot be made: {str(above)!r} is no folder to write to.', 'Choose another folder.')


def read_state_dict(source: Path) -> dict[str, Tensor]:
    """Names and tensors of a .safetensors file or a file of torch.save, on the CPU.

    Raises:
        ModelError: no such file, not such a file, or a pickle that wants to run code; the first name that it wants to import is given.
    """
    if not source.is_file():
        raise ModelError(f'source = {str(source)!r} is not a file.', 'Give a .safetensors file, or one of torch.save with a state dict in it.')
    if source.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(source)
        except (SafetensorError, OSError) as error:
            raise ModelError(f'{str(source)!r} cannot be read as safetensors: {error}.', 'Copy or export it again.') from error
    try:
        content = torch.load(source, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises what its reader meets
        if wanted := _wanted_global(source, str(error)):
            raise ModelError(f'{str(source)!r} is not a plain state dict: to load it is to import and run {wanted!r}.', _EXPORT) from error
        raise ModelError(f'{str(source)!r} cannot be read as a state dict.', _EXPORT) from error
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f'{str(source)!r} holds a {type(content).__name__}, not names and tensors.', _EXPORT)
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f'{str(source)!r} holds more than tensors, such as {", ".join(map(repr, others[:3]))}.', 'Save the state dict among them by itself.')
    return dict(content)


def from_edm_names(state: Mapping[str, Tensor], network: EncoderDecoder, resolution: int) -> dict[str, Tensor]:
    """The tensors of an official EDM network (DDPM++, NCSN++ or ADM) under our names and in our layout.

    Names follow the resolution: `enc.32x32_block0.conv0.weight` is `encoder.0.0.conv0.weight` for 32-pixel images. One layout
    differs: the rows of `qkv` are ordered (head, channel, q k v) there and (q k v, head, channel) here. Resampling filters,
    which are constants, are compared and left out. Names that mean nothing here stay as they are, for the comparison to report.

    Args:
        state: names without the wrapper's prefix, and tensors.
        network: ours, of the same size; may be on the meta device.
        resolution: of the images.

    Raises:
        ModelError: a resampling filter that our network does not have.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.endswith('resample_filter'):
            taps = torch.tensor(network.resample_filter, dtype=torch.float32)
            expected = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
            if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, atol=1e-3):
                raise ModelError(
                    f'{name!r} is not the filter {network.resample_filter} of the config.', 'Set resample_filter in network to (1, 1) or (1, 3, 3, 1).'
                )
            continue
        ours = _our_name(name, len(network.encoder), resolution)
        if '.attention.qkv.' in ours:
            tensor = _our_qkv(tensor, ours, network)
        renamed[ours] = tensor
    return renamed


def _our_name(name: str, levels: int, resolution: int) -> str:
    for theirs, ours in _TOP.items():
        if name == theirs or name.startswith(f'{theirs}.'):
            return ours + name.removeprefix(theirs)
    match = _PLACE.fullmatch(name)
    if match is None:
        return name
    side, size, what, number, rest = match.groups()
    level = round(math.log2(resolution / int(size))) if int(size) else -1
    if not 0 <= level < levels or resolution >> level != int(size):
        return name
    part, _, last = rest.partition('.')
    rest = f'{_PARTS.get(part, part)}.{last}' if last else rest
    index = int(number or 0)
    if side == 'enc':
        places = {'conv': 'first', 'down': f'encoder.{level}.0', 'block': f'encoder.{level}.{index + (level > 0)}', 'aux_residual': f'pyramid.{level - 1}.0'}
    else:
        depth = levels - 1 - level
        places = {
            'in': f'middle.{index}',
            'up': f'decoder.{depth}.0',
            'block': f'decoder.{depth}.{index + (depth > 0)}',
            'aux_norm': 'last_norm',
            'aux_conv': 'last',
        }
    return f'{places[what]}.{rest}' if what in places else name


def _our_qkv(tensor: Tensor, name: str, network: EncoderDecoder) -> Tensor:
    """Rows from (head, channel, q k v) to (q k v, head, channel); as it is where our network has no such attention."""
    modules = dict(network.named_modules())
    attention = modules.get(name.rpartition('.qkv.')[0])
    if not isinstance(attention, Attention) or len(tensor) % (3 * attention.heads):
        return tensor
    return tensor.reshape(attention.heads, -1, 3, *tensor.shape[1:]).movedim(2, 0).reshape(tensor.shape)


def _strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes of wrappers."""
    stripped: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        short = name
        while prefix := next((p for p in _PREFIXES if short.startswith(p)), None):
            short = short.removeprefix(prefix)
        if short in _NOT_WEIGHTS:
            continue
        if short in stripped:
            raise ModelError(f'The file holds both {origin[short]!r} and {name!r}: more than one set of weights.', 'Save the one that you want by itself.')
        stripped[short], origin[short] = tensor, name
    return stripped


def _compare(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], source: Path) -> None:
    """Refuse tensors that are not exactly those of the config, naming up to three of each fault."""
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    shapes = [f'{n} is {tuple(found[n].shape)} instead of {wanted[n]}' for n in sorted(set(wanted) & set(found)) if tuple(found[n].shape) != wanted[n]]
    faults = [
        f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for what, names in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
        if names
    ]
    if faults:
        raise ModelError(
            f'The tensors of {str(source)!r} do not fit the config: {"; ".join(faults)}.',
            'Change resolution, channels, classes, augment_labels or the options of network in the config.',
        )


def _wanted_global(source: Path, reason: str) -> str | None:
    """What a refused pickle wants to import: as torch's reader says, else the first such name in a bare pickle, read without running it."""
    if said := re.search(r'GLOBAL (\S+)', reason):
        return said[1]
    texts: list[str] = []
    try:
        with open(source, 'rb') as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ('GLOBAL', 'STACK_GLOBAL'):
                    name = str(argument).replace(' ', '.') if opcode.name == 'GLOBAL' else '.'.join(texts[-2:])
                    if not name.startswith(('torch.', 'collections.', 'builtins.')):
                        return name
                elif isinstance(argument, str):
                    texts.append(argument)
    except ValueError:  # no pickle
        return None
    return None
