"""Conversion of state dicts: both namings give the same network, nothing of the file runs, and what does not fit is named."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthaug_plugins.diffusion import build_denoiser
from synthaug_plugins.diffusion.blocks import Attention
from synthaug_plugins.errors import ModelError
from synthaug_plugins.learning.convert import convert_state_dict
from synthaug_plugins.weights import load_weights, read_config

CLASSES = ['a', 'b', 'c']
BASE: dict[str, Any] = {'kind': 'edm', 'resolution': 8, 'channels': 3, 'classes': CLASSES, 'label_conditioning': True, 'sigma_data': 0.5, 'augment_labels': 9}
SIZE = {'channels': 8, 'channel_mult': [1, 2], 'blocks_per_level': 2, 'attention_resolutions': [4]}
CONFIGS = {
    'ddpmpp': {**BASE, 'network': {'type': 'ddpmpp', **SIZE}},
    'ncsnpp': {**BASE, 'network': {'type': 'ddpmpp', **SIZE, 'embedding': 'fourier', 'resample_filter': [1, 3, 3, 1], 'pyramid': True}},
    'adm': {**BASE, 'network': {'type': 'adm', **SIZE, 'head_channels': 4}},
}


def official(config: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict under the official names for `SIZE`, written down block by block, with random values and the filters."""
    adm = config['network']['type'] == 'adm'
    ncsnpp = config['network'].get('pyramid', False)
    taps = torch.tensor([1.0, 3, 3, 1] if ncsnpp else [1.0, 1])
    c, e, f, noise = 8, 32, torch.outer(taps, taps)[None, None] / taps.sum() ** 2, 16 if ncsnpp else 8
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        state[f'{name}.weight'] = torch.randn(shape)
        if bias:
            state[f'{name}.bias'] = torch.randn(shape[0])

    def block(name: str, c_in: int, c_out: int, resample: bool = False, attend: bool = False) -> None:
        layer(f'{name}.norm0', c_in)
        layer(f'{name}.conv0', c_out, c_in, 3, 3)
        layer(f'{name}.affine', (2 if adm else 1) * c_out, e)
        layer(f'{name}.norm1', c_out)
        layer(f'{name}.conv1', c_out, c_out, 3, 3)
        if c_in != c_out or (resample and not adm):
            layer(f'{name}.skip', c_out, c_in, 1, 1)
        if resample:
            state[f'{name}.conv0.resample_filter'], state[f'{name}.skip.resample_filter'] = f.clone(), f.clone()
        if attend:
            layer(f'{name}.norm2', c_out)
            layer(f'{name}.qkv', 3 * c_out, c_out, 1, 1)
            layer(f'{name}.proj', c_out, c_out, 1, 1)

    if ncsnpp:
        state['map_noise.freqs'] = torch.randn(8)
    layer('map_label', e if adm else noise, 3, bias=not adm)
    layer('map_augment', noise, 9, bias=False)
    layer('map_layer0', e, noise)
    layer('map_layer1', e, e)
    layer('enc.8x8_conv', c, 3, 3, 3)
    block('enc.8x8_block0', c, c)
    block('enc.8x8_block1', c, c)
    block('enc.4x4_down', c, c, resample=True)
    if ncsnpp:
        layer('enc.4x4_aux_residual', c, 3, 3, 3)
        state['enc.4x4_aux_residual.resample_filter'] = f
    block('enc.4x4_block0', c, 2 * c, attend=True)
    block('enc.4x4_block1', 2 * c, 2 * c, attend=True)
    block('dec.4x4_in0', 2 * c, 2 * c, attend=True)
    block('dec.4x4_in1', 2 * c, 2 * c)
    block('dec.4x4_block0', 4 * c, 2 * c, attend=adm)
    block('dec.4x4_block1', 4 * c, 2 * c, attend=adm)
    block('dec.4x4_block2', 3 * c, 2 * c, attend=True)
    block('dec.8x8_up', 2 * c, 2 * c, resample=True)
    block('dec.8x8_block0', 3 * c, c)
    block('dec.8x8_block1', 2 * c, c)
    block('dec.8x8_block2', 2 * c, c)
    layer('out_norm' if adm else 'dec.8x8_aux_norm', c)
    layer('out_conv' if adm else 'dec.8x8_aux_conv', 3, c, 3, 3)
    return state


@pytest.mark.parametrize('kind', CONFIGS)
def test_official_names_fill_every_tensor_of_our_network(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = official(CONFIGS[kind])
    torch.save({f'model.{name}': tensor for name, tensor in state.items()}, tmp_path / 'plain.pt')
    card = convert_state_dict(tmp_path / 'plain.pt', CONFIGS[kind], tmp_path / 'out', licence='CC BY-NC-SA 4.0')
    weights = load_weights(tmp_path / 'out')
    build_denoiser(read_config(tmp_path / 'out')).load_state_dict(weights)
    # Each value arrived once: norms and scales of the same shape cannot have changed places unseen.
    filters = sum(t.numel() for name, t in state.items() if name.endswith('resample_filter'))
    assert sum(t.numel() for t in weights.values()) == sum(t.numel() for t in state.values()) - filters
    pairs = {
        'enc.8x8_block1.norm1.bias': 'encoder.0.1.norm1.bias',
        'enc.4x4_down.conv0.weight': 'encoder.1.0.conv0.weight',
        'enc.4x4_block1.affine.weight': 'encoder.1.2.modulate.weight',
        'dec.4x4_in1.conv1.bias': 'middle.1.conv1.bias',
        'dec.4x4_block2.proj.weight': 'decoder.0.2.attention.project.weight',
        'dec.8x8_up.norm0.weight': 'decoder.1.0.norm0.weight',
        'dec.8x8_block0.skip.weight': 'decoder.1.1.skip.weight',
        'map_layer1.weight': 'embed1.weight',
    }
    for theirs, ours in pairs.items():
        assert torch.equal(weights[f'network.{ours}'], state[theirs])
    assert card['licence'] == 'CC BY-NC-SA 4.0'
    assert 'CC BY-NC-SA' in card['licence_note']
    assert json.loads((tmp_path / 'out' / 'card.json').read_text()) == card


@pytest.mark.parametrize('kind', ['ddpmpp', 'adm'])
def test_official_attention_rows_mean_the_same_in_ours(kind: str, tmp_path: Path) -> None:
    """The official order is (head, channel, q k v); attention by hand in that order equals ours after the conversion."""
    torch.manual_seed(1)
    state = official(CONFIGS[kind])
    save_file(state, tmp_path / 'plain.safetensors')
    convert_state_dict(tmp_path / 'plain.safetensors', CONFIGS[kind], tmp_path / 'out')
    denoiser = build_denoiser(CONFIGS[kind])
    denoiser.load_state_dict(load_weights(tmp_path / 'out'))
    attention = denoiser.network.middle[0].attention  # type: ignore[union-attr, index]
    assert isinstance(attention, Attention)
    heads, x = (4, torch.randn(2, 16, 4, 4)) if kind == 'adm' else (1, torch.randn(2, 16, 4, 4))
    name = 'dec.4x4_in0'
    h = torch.nn.functional.group_norm(x, 4, state[f'{name}.norm2.weight'], state[f'{name}.norm2.bias'], 1e-5 if kind == 'adm' else 1e-6)
    rows = torch.einsum('oi,bihw->bohw', state[f'{name}.qkv.weight'][:, :, 0, 0], h) + state[f'{name}.qkv.bias'][:, None, None]
    q, k, v = rows.reshape(2 * heads, 16 // heads, 3, 16).unbind(2)
    w = torch.einsum('ncq,nck->nqk', q, k / math.sqrt(16 // heads)).softmax(dim=2)
    a = torch.einsum('nqk,nck->ncq', w, v).reshape(2, 16, 4, 4)
    a = torch.einsum('oi,bihw->bohw', state[f'{name}.proj.weight'][:, :, 0, 0], a) + state[f'{name}.proj.bias'][:, None, None]
    expected = (x + a) * (1.0 if kind == 'adm' else math.sqrt(0.5))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('prefix', ['', 'network.', 'module.network._orig_mod.', 'ema.model.'])
def test_own_names_pass_through_under_any_wrapper(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = build_denoiser(CONFIGS['adm']).network
    torch.save({**{f'{prefix}{k}': v for k, v in network.state_dict().items()}, 'n_averaged': torch.tensor(3)}, tmp_path / 'plain.pth')
    convert_state_dict(tmp_path / 'plain.pth', CONFIGS['adm'], tmp_path / 'out', dtype=torch.float16)
    weights = load_weights(tmp_path / 'out')
    for name, tensor in network.state_dict().items():
        assert torch.equal(weights[f'network.{name}'], tensor.half())


def test_random_frequencies_keep_their_precision(tmp_path: Path) -> None:
    state = official(CONFIGS['ncsnpp'])
    save_file(state, tmp_path / 'plain.safetensors')
    convert_state_dict(tmp_path / 'plain.safetensors', CONFIGS['ncsnpp'], tmp_path / 'out', dtype=torch.float16)
    weights = load_file(tmp_path / 'out' / 'model.safetensors')
    assert torch.equal(weights['network.frequencies'], state['map_noise.freqs'])
    assert weights['network.embed0.weight'].dtype == torch.float16


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('writer', ['torch.save', 'pickle 2', 'pickle 4'])
def test_pickle_that_carries_code_is_refused_by_name_and_does_not_run(writer: str, tmp_path: Path) -> None:
    content, path = {'ema': Runs(tmp_path / 'ran'), 'x': 1}, tmp_path / 'network.pkl'
    if writer == 'torch.save':
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    with pytest.raises(ModelError, match=r'posix\.mkdir') as refused:
        convert_state_dict(path, CONFIGS['adm'], tmp_path / 'out')
    assert 'save_file' in refused.value.cure
    assert not (tmp_path / 'ran').exists()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda s: s.pop('embed0.bias'), r'1 missing \(embed0.bias\)'),
        (lambda s: s.update({'extra': torch.ones(1)}), r'1 unexpected \(extra\)'),
        (lambda s: s.update({'last.bias': torch.ones(4)}), r'last.bias is \(4,\) instead of \(3,\)'),
        (lambda s: s['last.bias'].fill_(math.nan), 'last.bias.* not finite'),
        (lambda s: s.update({'model.last.bias': torch.ones(3)}), 'more than one set'),
        (lambda s: s.update({'step': 7}), "more than tensors, such as 'step'"),
    ],
    ids=['missing', 'unexpected', 'shape', 'nan', 'two sets', 'no tensor'],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(change: Any, named: str, tmp_path: Path) -> None:
    state = dict(build_denoiser(CONFIGS['ddpmpp']).network.state_dict())
    change(state)
    torch.save(state, tmp_path / 'plain.pt')
    with pytest.raises(ModelError, match=named):
        convert_state_dict(tmp_path / 'plain.pt', CONFIGS['ddpmpp'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_filter_of_another_network_is_refused(tmp_path: Path) -> None:
    config = {**CONFIGS['ncsnpp'], 'network': {**CONFIGS['ncsnpp']['network'], 'resample_filter': [1, 1]}}
    save_file(official(CONFIGS['ncsnpp']), tmp_path / 'plain.safetensors')
    with pytest.raises(ModelError, match='resample_filter'):
        convert_state_dict(tmp_path / 'plain.safetensors', config, tmp_path / 'out')


def test_unreadable_files_and_taken_folders_are_refused(tmp_path: Path) -> None:
    for name in ('a.pt', 'a.safetensors'):
        (tmp_path / name).write_bytes(b'nonsense')
        with pytest.raises(ModelError, match='cannot be read'):
            convert_state_dict(tmp_path / name, CONFIGS['adm'], tmp_path / 'out')
    with pytest.raises(ModelError, match='not a file'):
        convert_state_dict(tmp_path / 'none.pt', CONFIGS['adm'], tmp_path / 'out')
    save_file(dict(build_denoiser(CONFIGS['adm']).network.state_dict()), tmp_path / 'plain.safetensors')
    convert_state_dict(tmp_path / 'plain.safetensors', CONFIGS['adm'], tmp_path / 'out')
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.tex').write_text('precious')
    for taken, named in (('out', 'no empty folder'), ('thesis', 'no empty folder'), ('a.pt', 'no empty folder'), ('a.pt/out', 'cannot be made')):
        with pytest.raises(ModelError, match=named):
            convert_state_dict(tmp_path / 'plain.safetensors', CONFIGS['adm'], tmp_path / taken)
    assert [p.name for p in (tmp_path / 'thesis').iterdir()] == ['chapter.tex']
