"""Erasures on disk, and a network that switches between its own weights and those with a class erased."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from torch import Tensor

from synthaug_plugins.diffusion import SampleNoise
from synthaug_plugins.errors import DataError, ModelError
from synthaug_plugins.learning.weight_edits import WeightEdits, edited_names
from synthaug_plugins.models.erasure import ERASURES, Eraser, Erasures, erasure_file, lora_tensors, save_erasure
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import save_words
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.plan import Part

CPU = torch.device('cpu')
CLASSES = ['cat', 'St. Bernard']


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp('sd'))


def erasures(folder: Path, model: Path, kind: str = 'lora', method: str = 'esd-x', classes: Sequence[str] = CLASSES) -> Path:
    """A folder of erasures for a pipeline, with random content. The second class changes fewer layers than the first."""
    text = TextModel(str(model))
    network = diffusers.UNet2DConditionModel.from_config(json.loads((model / 'unet' / 'config.json').read_text()))
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    g = torch.Generator().manual_seed(0)
    card: dict[str, Any] = {'format': 1, 'model': {**text.origin(), 'name': 'tiny'}, 'weights': kind, 'method': method, 'classes': {}}
    for k, name in enumerate(classes):
        names = edited_names(network, method, kind)[k * 2 :]
        if kind == 'full':
            tensors = {n: torch.randn(shapes[n], generator=g) for n in names}
        else:
            factors = {}
            for n in names:
                out, *rest = shapes[n]
                ones = [1] * (len(rest) - 1)
                factors[n.removesuffix('.weight')] = torch.randn(3, *rest, generator=g), 0.1 * torch.randn(out, 3, *ones, generator=g)
            tensors = lora_tensors(factors)
        card = save_erasure(folder, card, name, tensors)
    return folder


def weights(model: TextModel) -> dict[str, Tensor]:
    network = getattr(model._loaded().model, '_orig_mod', model._loaded().model)
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def predict(model: TextModel, prompt: str = 'a photo of a cat') -> Tensor:
    x = SampleNoise([1], model.size).latents()
    with torch.no_grad():
        return model._loaded()(x, torch.tensor(1.0, dtype=torch.float64), model.conditions([prompt]))


@pytest.mark.parametrize(('kind', 'method'), [('lora', 'esd-x'), ('lora', 'full'), ('full', 'esd-u')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_classes_are_switched_and_the_own_weights_return_to_the_bit(pipeline: Path, tmp_path: Path, kind: str, method: str, dtype: torch.dtype) -> None:
    folder = erasures(tmp_path / 'e', pipeline, kind, method)
    model = TextModel(str(pipeline), erasures=str(folder))
    model.load(CPU, dtype)
    own = weights(model)
    seen = {}
    for name in [*CLASSES, *CLASSES]:
        model.erase(name)
        now = weights(model)
        touched = Erasures(folder).parameters(name)
        assert {n for n in own if not torch.equal(own[n], now[n])} == set(touched)
        assert equal(seen.setdefault(name, now), now)  # whatever was erased before
        assert all(p.dtype == dtype for p in now.values())
    name, W = touched[0], seen['St. Bernard'][touched[0]]
    stored = safetensors(folder / erasure_file('St. Bernard'))
    if kind == 'full':
        assert torch.equal(W, stored[name].to(dtype))
    else:
        A, B = (stored[f'unet.{name.removesuffix(".weight")}.lora_{x}.weight'] for x in 'AB')
        assert torch.equal(W, (own[name].float() + (B.flatten(1) @ A.flatten(1)).reshape(W.shape)).to(dtype))
    model.erase(None)
    assert equal(weights(model), own)


def safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_a_compiled_network_stays_compiled_and_runs_with_the_erased_weights(pipeline: Path, tmp_path: Path) -> None:
    card = {'format': 1, 'model': {}, 'weights': 'lora', 'classes': {}}
    g = torch.Generator().manual_seed(0)
    for name in ('cat', 'dog'):
        card = save_erasure(tmp_path, card, name, lora_tensors({'0': (torch.randn(2, 4, generator=g), torch.randn(4, 2, generator=g))}))
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU(), torch.nn.Linear(4, 4)).requires_grad_(False)
    calls: list[Any] = []
    compiled = torch.compile(network, backend=lambda graph, inputs: calls.append(graph) or graph)
    erase, x = Eraser(Erasures(tmp_path), network), torch.randn(1, 4, generator=g)
    seen = []
    for name in ('cat', None, 'dog', 'cat'):
        erase(name)
        seen.append(compiled(x))
        assert torch.equal(seen[-1], network(x))
    assert len(calls) == 1  # compiled once
    assert torch.equal(seen[0], seen[3])
    assert not any(torch.allclose(seen[0], other) for other in seen[1:3])
    model = TextModel(str(pipeline), compile=True, erasures=str(erasures(tmp_path / 'e', pipeline)))
    model.load(CPU, torch.float32)
    own = weights(model)
    model.erase('cat')
    assert not equal(weights(model), own)


@pytest.mark.parametrize('family', ['sd', 'sdxl'])
@pytest.mark.parametrize('method', ['esd-x', 'full'])
def test_diffusers_itself_reads_a_low_rank_erasure(pipeline: Path, tmp_path: Path, family: str, method: str) -> None:
    pytest.importorskip('peft')
    source = pipeline if family == 'sd' else tiny.sdxl(tmp_path / 'sdxl')
    folder = erasures(tmp_path / 'e', source, method=method)
    model = TextModel(str(source), erasures=str(folder))
    model.load(CPU, torch.float32)
    own = predict(model)
    model.erase('cat')
    ours = predict(model)
    cls = diffusers.StableDiffusionPipeline if family == 'sd' else diffusers.StableDiffusionXLPipeline
    stock = cls.from_pretrained(source)
    stock.load_lora_weights(folder, weight_name=erasure_file('cat'))
    denoiser = type(model._loaded())(stock.unet, stock.scheduler)
    with torch.no_grad():
        theirs = denoiser(SampleNoise([1], model.size).latents(), torch.tensor(1.0, dtype=torch.float64), model.conditions(['a photo of a cat']))
    assert torch.allclose(theirs, ours, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(theirs, own, atol=1e-2)


def test_erasures_that_do_not_fit_are_refused_before_weights_load(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = erasures(tmp_path / 'e', pipeline)
    monkeypatch.setattr(TextModel, 'load', None)
    model = TextModel(str(pipeline), erasures=str(folder))
    model.check_learned(CLASSES)
    with pytest.raises(DataError, match=r"nothing for the class 'dog'.*--classes 'dog'"):
        model.check_learned(['cat', 'dog'])
    other = tiny.sd(tmp_path / 'other', tiny.ddim(prediction_type='v_prediction'))
    with pytest.raises(ModelError, match=r"learned on 'tiny' of other content"):
        TextModel(str(other), erasures=str(folder)).check_learned(CLASSES)
    with pytest.raises(ModelError, match='no U-Net'):
        TextModel(str(tiny.pixart(tmp_path / 'pixart')), erasures=str(folder)).check_learned(CLASSES)
    erasures(tmp_path / 'run' / 'erasures', pipeline)
    with pytest.raises(ModelError, match=r'no erasures.json in it.*Did you mean'):
        Erasures(tmp_path / 'run')
    with pytest.raises(ModelError, match=r'no erasures\.json'):
        TextModel(str(pipeline), erasures=str(tmp_path / 'nowhere'))
    file = folder / 'cat.safetensors'
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match='does not have the hash'):
        model.check_learned(['cat'])
    model.check_learned(['St. Bernard'])
    file.unlink()
    with pytest.raises(ModelError, match=r'cat.safetensors. is missing'):
        model.check_learned(['cat'])


def test_a_file_that_fits_no_layer_is_refused(pipeline: Path, tmp_path: Path) -> None:
    folder = erasures(tmp_path / 'e', pipeline)
    card = json.loads((folder / ERASURES).read_text())
    save_erasure(folder, card, 'dog', lora_tensors({'conv_in': (torch.zeros(2, 4, 5, 5), torch.zeros(8, 2, 1, 1))}))
    with pytest.raises(ModelError, match=r"'conv_in.weight' of the shape \(8, 4, 5, 5\)"):
        TextModel(str(pipeline), erasures=str(folder)).check_learned(['dog'])


@pytest.mark.parametrize('change', [{'format': 2}, {'weights': 'half'}, {'classes': {'cat': {'file': '../cat.safetensors', 'sha256': ''}}}])
def test_a_card_that_cannot_be_trusted_is_refused(pipeline: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = erasures(tmp_path / 'e', pipeline, classes=['cat'])
    card = json.loads((folder / ERASURES).read_text())
    (folder / ERASURES).write_text(json.dumps({**card, **change}))
    with pytest.raises(ModelError):
        Erasures(folder)


def test_file_names_stay_in_the_folder_and_apart() -> None:
    names = ['three', 'Three', 'THREE', '../up', 'a/b', 'a b', '..', '', 'x' * 300, 'Étoile', '星', '月', 'con.', '.hidden']
    files = [erasure_file(name) for name in names]
    assert len({f.lower() for f in files}) == len(names)
    assert files[0] == 'three.safetensors'
    assert all(Path(f).name == f and f.isascii() and not f.startswith('.') and len(f) < 100 for f in files)


def test_the_identity_of_a_model_says_its_erasures_and_its_origin_does_not(pipeline: Path, tmp_path: Path) -> None:
    plain, erased = TextModel(str(pipeline)), TextModel(str(pipeline), erasures=str(erasures(tmp_path / 'e', pipeline)))
    assert plain.origin() == erased.origin() == {key: plain.identity()[key] for key in ('name', 'sha256')}
    assert 'erasures' not in plain.identity()
    other = TextModel(str(pipeline), erasures=str(erasures(tmp_path / 'f', pipeline, 'full')))
    assert erased.identity()['erasures'] != other.identity()['erasures']


@pytest.mark.parametrize('kind', ['TextToImage', 'RealGuidance'])
def test_a_generator_makes_each_class_with_that_class_erased(pipeline: Path, tmp_path: Path, kind: str) -> None:
    folder, classes = str(erasures(tmp_path / 'e', pipeline, classes=['cat', 'dog'])), ('cat', 'dog')
    for name in classes:
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / 'data' / name / '0.png')
    real = RealImages(tmp_path / 'data')
    options: dict[str, Any] = {'model': str(pipeline), 'sampler': {'num_steps': 2}, 'prompts': {'type': 'ClassNameFree'}}
    options |= {} if kind == 'TextToImage' else {'t0': [0.5, 1.0]}

    def made(**more: Any) -> tuple[Any, list[Any], dict[str, np.ndarray]]:
        generator = GENERATORS.build({'type': kind, **options, **more})
        generator.real_images = real
        generator.check(classes)
        generator.prepare(classes, print)
        generator.setup(CPU, real)
        parts = [Part(0, k, name, 4, 8, sources=real.ids(name), offset=8 * k) for k, name in enumerate(classes)]
        requests = [r for part in parts for r in islice(generator.requests(part, 0), 4)]
        images = {}
        for key in dict.fromkeys(map(generator.bucket, requests)):
            batch = [r for r in requests if generator.bucket(r) == key]
            images |= dict(zip([r.id for r in batch], generator.generate(batch), strict=True))
        return generator, requests, images

    generator, requests, images = made(erasures=folder)
    own, _, before = made()
    strengths = 1 if kind == 'TextToImage' else 2
    assert len({generator.bucket(r) for r in requests}) == 2 * strengths
    assert len({own.bucket(r) for r in requests}) == strengths
    assert generator.identity()['model']['erasures'] == Erasures(folder).identity()
    assert not any(np.array_equal(images[r.id], before[r.id]) for r in requests)
    for name in reversed(classes):  # by hand, in the other order
        own.model.erasures = generator.model.erasures
        own.model._eraser = own.model._eraser or Eraser(own.model.erasures, own.model._loaded().model)
        for r in (r for r in requests if r.class_name == name):
            again = own.generate([r])[0]
            assert np.abs(again.astype(int) - images[r.id].astype(int)).max() <= 1
    with pytest.raises(DataError, match=r"nothing for the class 'bird'"):
        generator.check(['cat', 'bird'])


def test_words_and_erasures_are_used_together_as_they_were_learned_or_not_at_all(pipeline: Path, tmp_path: Path) -> None:
    folder, others = erasures(tmp_path / 'e', pipeline, classes=['cat', 'dog']), erasures(tmp_path / 'f', pipeline, 'full', classes=['cat'])

    def words(learned_on: Path | None) -> str:
        widths = TextModel(str(pipeline)).text_widths()
        card: dict[str, Any] = {'classes': ['cat'], 'vectors': 1, 'encoders': list(widths), 'initialised_from': {'word': 'the'}}
        card |= {'model': TextModel(str(pipeline)).origin(), 'erasures': None if learned_on is None else Erasures(learned_on).hashes(['cat'])}
        file = tmp_path / f'{learned_on and learned_on.name}.safetensors'
        save_words(file, {e: {'<cat>': torch.zeros(1, width)} for e, width in widths.items()}, card)
        return str(file)

    def check(learned_on: Path | None, used: Path | None) -> None:
        TextModel(str(pipeline), words=words(learned_on), **({'erasures': str(used)} if used else {})).check_learned(['cat'])

    for same in (folder, others, None):
        check(same, same)
    with pytest.raises(ModelError, match='learned on a model with their classes erased'):
        check(folder, None)
    with pytest.raises(ModelError, match='learned on the model itself, without erasures'):
        check(None, folder)
    with pytest.raises(ModelError, match=r"word of 'cat' in .* was learned with another erasure"):
        check(folder, others)


def test_edits_that_are_off_or_removed_leave_the_network_as_it_was(pipeline: Path) -> None:
    model = TextModel(str(pipeline))
    network = model.load(CPU, torch.float32).model
    own, before = {n: p.clone() for n, p in network.state_dict().items()}, predict(model)
    for kind in ('lora', 'full'):
        names = edited_names(network, 'full', kind)
        edits = WeightEdits(network, names, kind)
        edits.reset(0)
        with edits.on():
            assert all(torch.equal(network.get_submodule(n.rpartition('.')[0]).weight, own[n]) for n in names if n.endswith('.weight'))  # nothing learned yet
        with torch.no_grad():
            for p in edits.parameters.values():
                p.add_(0.1)
        assert torch.equal(predict(model), before)
        with edits.on():
            assert not torch.allclose(predict(model), before)
        edits.remove()
        assert {n: p.shape for n, p in network.state_dict().items()} == {n: p.shape for n, p in own.items()}
        assert equal(dict(network.state_dict()), own)


@pytest.mark.parametrize(
    ('method', 'inside', 'outside'),
    [
        ('esd-x', 'attn2.to_q', 'attn1.to_q'),
        ('esd-x-strict', 'attn2.to_k', 'attn2.to_q'),
        ('esd-u', 'conv_in', 'attn2.to_k'),
        ('full', 'attn2.to_k', None),
        ('selfattn', 'attn1.to_q', 'attn2.to_q'),
    ],
)
def test_each_method_edits_its_layers(method: str, inside: str, outside: str | None) -> None:
    network = tiny.unet()
    low, whole = (edited_names(network, method, kind) for kind in ('lora', 'full'))
    assert set(low) <= set(whole)
    assert any(inside in name for name in low)
    assert not any(outside in name for name in whole if outside)
    assert (len(whole) == len(list(network.named_parameters()))) == (method == 'full')
