"""CLIP models load as open_clip loads them, and the filters keep exactly what their rules say."""

from __future__ import annotations

import gc
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug_plugins.curation.class_prompts import ClassPrompts
from synthaug_plugins.curation.clip_filter import ClipFilter
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.real_filter import RealFilter
from synthaug_plugins.curation.teacher import SoftLabels
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.errors import DataError, ModelError, QuotaShortfall, RecipeError
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Request
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

open_clip = pytest.importorskip('open_clip')
CPU = torch.device('cpu')
CLASSES = ('cat', 'dog', 'red_fox')
CONFIG: dict[str, Any] = {
    'embed_dim': 24,
    'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 64, 'patch_size': 8},
    'text_cfg': {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1},
}


def save(folder: Path, seed: int = 0, preprocess: dict[str, Any] | None = None, **text_cfg: Any) -> Path:
    """A CLIP folder with random weights; towers and scale are made livelier than at initialisation, so that classes differ."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    config = {**CONFIG, 'text_cfg': {**CONFIG['text_cfg'], **text_cfg}}
    model = open_clip.CLIP(**config)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(100))
        model.token_embedding.weight.mul_(50)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config, 'preprocess_cfg': preprocess or {}}))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / 'open_clip_model.safetensors')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp('clip') / 'tiny')


@pytest.fixture(scope='module')
def clip(folder: Path) -> ClipModel:
    model = ClipModel(str(folder))
    model.check()
    model.load(CPU)
    return model


@pytest.fixture(scope='module')
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((32, 32), (8, 8), (40, 71), (100, 33), (32, 50))]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError('the network was asked')

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def requests(labels: list[int]) -> list[Request]:
    return [Request(f'00000_{i:06d}', label, CLASSES[label], i) for i, label in enumerate(labels)]


def ready(inspector: Any, classes: tuple[str, ...] = CLASSES, real: RealImages | None = None) -> Any:
    inspector.check(classes, real)
    inspector.setup(CPU, classes, real)
    return inspector


# The model


@pytest.mark.parametrize('mode', ['shortest', 'squash', 'longest'])
def test_preprocessing_equals_open_clips_own(mode: str, tmp_path: Path, images: list[np.ndarray]) -> None:
    save(tmp_path, preprocess={'resize_mode': mode, 'mean': [0.1, 0.2, 0.3], 'std': [0.5, 0.6, 0.7], 'interpolation': 'bilinear'})
    model = ClipModel(str(tmp_path))
    model.load(CPU)
    _, _, transform = open_clip.create_model_and_transforms(f'local-dir:{tmp_path}')
    theirs = torch.stack([transform(Image.fromarray(image)) for image in images])
    assert torch.equal(model.preprocess(images), theirs)


def test_features_equal_open_clips_own(clip: ClipModel, folder: Path, images: list[np.ndarray]) -> None:
    theirs, _, transform = open_clip.create_model_and_transforms(f'local-dir:{folder}')
    theirs.eval()
    texts = ['a photo of a cat', 'a dog']
    with torch.no_grad():
        wanted = theirs.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images]), normalize=True)
        wanted_texts = theirs.encode_text(open_clip.get_tokenizer(f'local-dir:{folder}')(texts), normalize=True)
    torch.testing.assert_close(clip.encode_images(images), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.encode_texts(texts), wanted_texts, atol=1e-6, rtol=0)
    assert clip.logit_scale == pytest.approx(100, rel=1e-5)
    assert not any(p.requires_grad for p in clip.model.parameters())
    assert not clip.model.training


def test_more_images_than_a_batch_come_back_in_order(clip: ClipModel, images: list[np.ndarray]) -> None:
    many = [images[i % len(images)] for i in range(2 * clip.batch_size + 3)]
    features = clip.encode_images(many)
    torch.testing.assert_close(features, clip.encode_images(images)[[i % len(images) for i in range(len(many))]], atol=1e-5, rtol=0)


def test_an_ensemble_is_the_normalised_mean_of_unit_vectors(clip: ClipModel) -> None:
    prompts = [['a cat', 'the cat', 'one cat'], ['a dog']]
    first, second = clip.class_embeddings(prompts)
    mean = clip.encode_texts(prompts[0]).mean(0)
    torch.testing.assert_close(first, mean / mean.norm(), atol=1e-6, rtol=0)
    torch.testing.assert_close(second, clip.encode_texts(prompts[1])[0], atol=1e-6, rtol=0)


def test_loading_leaves_the_users_logging_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger(), 'handlers', [])
    model = ClipModel(str(folder))
    model.check()
    model.load(CPU)
    assert logging.getLogger().handlers == []


def test_identity_is_of_the_content_not_of_the_name(folder: Path, tmp_path: Path) -> None:
    def sha(path: Path) -> str:
        return ClipModel(str(path)).identity()['sha256']

    same, other = tmp_path / 'elsewhere', save(tmp_path / 'tiny', seed=1)
    shutil.copytree(folder, same)
    assert sha(same) == sha(folder) != sha(other)
    changed = save(tmp_path / 'changed', preprocess={'resize_mode': 'squash'})
    assert sha(changed) != sha(folder)
    json.dumps(ClipModel(str(folder)).identity())


def letters_tokenizer(path: Path) -> None:
    """A tokenizer of letters in transformers' files."""
    from transformers import CLIPTokenizer

    words = [*'abcdefghijklmnopqrstuvwxyz', *(f'{c}</w>' for c in 'abcdefghijklmnopqrstuvwxyz'), '<|startoftext|>', '<|endoftext|>']
    (path / 'vocab.json').write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (path / 'merges.txt').write_text('#version: 0.2\n')
    CLIPTokenizer.from_pretrained(path).save_pretrained(path)


def test_a_folder_with_its_own_tokenizer_needs_no_network(tmp_path: Path, images: list[np.ndarray], no_network: None) -> None:
    save(tmp_path, hf_tokenizer_name='own', vocab_size=60, context_length=30)
    with pytest.raises(ModelError, match='tokenizer is missing'):
        ClipModel(str(tmp_path)).check()
    letters_tokenizer(tmp_path)
    inspector = ready(ClipFilter(f'local-dir:{tmp_path}'))
    assert inspector.zero_shot.clip.tokenizer(['cat']).max() < 60
    verdicts = inspector.inspect(requests([0, 1, 2]), images[:3])
    assert verdicts.scores['clip_p'].shape == (3,)
    before = ClipModel(str(tmp_path)).identity()['sha256']
    tokenizer = tmp_path / 'tokenizer.json'
    tokenizer.write_text(tokenizer.read_text() + ' ')
    assert ClipModel(str(tmp_path)).identity()['sha256'] != before


def test_a_tokenizer_that_cannot_pad_is_refused_with_the_file_that_says_how(tmp_path: Path, no_network: None) -> None:
    save(tmp_path, hf_tokenizer_name='own', vocab_size=60, context_length=30)
    letters_tokenizer(tmp_path)
    (tmp_path / 'tokenizer_config.json').unlink()
    for check in (ClipModel(str(tmp_path)).check, lambda: ClipFilter(str(tmp_path)).check(CLASSES, None)):
        with pytest.raises(ModelError, match=r'padding token.*tokenizer_config\.json'):
            check()


def test_all_prompts_are_tokenised_in_one_call_and_the_one_that_is_too_long_is_named(tmp_path: Path) -> None:
    save(tmp_path, hf_tokenizer_name='own', vocab_size=60, context_length=30)
    letters_tokenizer(tmp_path)
    clip, prompts = ClipModel(str(tmp_path)), ClassPrompts(['a {}', 'the {}'])
    calls, original = [], clip.tokenizer.tokenizer
    clip.tokenizer.tokenizer = lambda texts, **options: calls.append(len(texts)) or original(texts, **options)
    names = [f'thing {a}{b}' for a in 'abcdefghij' for b in 'abcdefghij']
    prompts.check(names, clip)
    assert calls == [200]
    long = 'thing' + ' q' * 21  # 26 letters and two tokens at the ends: 'a' still fits, 'the' does not
    with pytest.raises(RecipeError, match=rf"'the {long}' of the class '{long}' is 1 tokens too long"):
        prompts.check([*names, long], clip)


def test_open_clips_own_tokenizer_tells_what_is_too_long(clip: ClipModel) -> None:
    assert clip.excess_tokens(['cat', 'cat ' * 14, 'cat ' * 15, 'cat ' * 20]) == [0, 0, 1, 6]


@pytest.mark.parametrize('where', ['folder', 'hub'])
def test_a_tokenizers_code_is_never_run(where: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip hands whatever options a config names to transformers, trust_remote_code among them."""
    own = tmp_path / 'own'
    own.mkdir()
    config = {'hf_tokenizer_name': str(own), 'vocab_size': 60, 'context_length': 30, 'tokenizer_kwargs': {'trust_remote_code': True}}
    save(own if where == 'folder' else tmp_path / 'hub' / 'models--someone--tiny' / 'snapshots' / ('a' * 40), **config)
    letters_tokenizer(own)
    (own / 'tokenizer_config.json').write_text(json.dumps({'auto_map': {'AutoTokenizer': ['evil.Evil', None]}, 'tokenizer_class': 'Evil'}))
    (own / 'evil.py').write_text(f'from pathlib import Path\nPath({str(tmp_path / "ran")!r}).touch()\nfrom transformers import CLIPTokenizer as Evil\n')
    model = ClipModel(str(own) if where == 'folder' else 'hf-hub:someone/tiny')
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('the user was asked'))
    with pytest.raises(ModelError, match='tokenizer'):
        model.check()
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def architecture(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny architecture that open_clip knows by name, with an 'openai' tag whose weights lie in a hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIGS', {**open_clip.factory._MODEL_CONFIGS, 'tiny': CONFIG})
    tag = {**open_clip.pretrained.get_pretrained_cfg('RN50', 'openai'), 'hf_hub': 'someone/tiny/'}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny', {'openai': tag})
    repository = tmp_path / 'hub' / 'models--someone--tiny'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text('a' * 40)
    shutil.copytree(folder, repository / 'snapshots' / ('a' * 40))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    return 'tiny'


def quick(model: Any) -> bool:
    return any(type(module).__name__ == 'QuickGELU' for module in model.modules())


def test_a_folder_that_is_called_like_an_architecture_hides_it_not(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'work' / architecture).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'work')
    assert ClipModel(architecture).identity()['name'] == 'tiny/openai'
    save(Path(architecture))
    assert ClipModel(architecture).identity()['name'] == 'tiny'


def test_a_tag_brings_its_activation_and_preprocessing(architecture: str, folder: Path) -> None:
    """OpenAI's weights were trained with the approximate GELU; open_clip itself would only warn."""
    model = ClipModel(architecture)
    model.check()
    model.load(CPU)
    assert quick(model.model)
    assert model.identity()['name'] == 'tiny/openai'
    torch.testing.assert_close(model.model.state_dict()['visual.proj'], weights_of(folder)['visual.proj'])


@pytest.mark.parametrize('gelu', [None, True])
def test_a_weight_file_loads_with_the_activation_that_is_said(gelu: bool | None, architecture: str, folder: Path) -> None:
    model = ClipModel(architecture, str(folder / 'open_clip_model.safetensors'), quick_gelu=gelu)
    model.check()
    model.load(CPU)
    assert quick(model.model) == bool(gelu)


def test_a_hub_repository_in_the_cache_works_offline(architecture: str, images: list[np.ndarray]) -> None:
    model = ClipModel('hf-hub:someone/tiny')
    model.check()
    model.load(CPU)
    assert model.encode_images(images).shape == (5, 24)


def test_a_hub_repository_names_its_tokenizer(architecture: str, tmp_path: Path) -> None:
    (tmp_path / 'letters').mkdir()
    letters_tokenizer(tmp_path / 'letters')
    snapshot = tmp_path / 'hub' / 'models--someone--tiny' / 'snapshots' / ('a' * 40)
    save(snapshot, hf_tokenizer_name=str(tmp_path / 'letters'), vocab_size=60, context_length=30)
    model = ClipModel('hf-hub:someone/tiny', revision='main')
    model.check()
    assert model.tokenizer(['cat']).shape == (1, 30)
    assert model.tokenizer(['cat']).max() < 60
    assert model.excess_tokens(['cat ' * 10, 'cat', 'cat ' * 9]) == [2, 0, 0]
    assert model.identity()['revision'] == 'main'


def test_pickles_load_tensors_and_never_code(architecture: str, folder: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / 'good.pt', tmp_path / 'bad.pt'
    torch.save(weights_of(folder), good)
    model = ClipModel(architecture, str(good))
    model.load(CPU)
    assert quick(model.model) is False

    class Code:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return Path.touch, (tmp_path / 'ran',)

    torch.save({'state_dict': {'x': Code()}}, bad)
    with pytest.raises(ModelError, match='do not load'):
        ClipModel(architecture, str(bad)).load(CPU)
    assert not (tmp_path / 'ran').exists()
    scripted = tmp_path / 'scripted.pt'
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), scripted)
    with pytest.raises(ModelError, match='TorchScript'):
        ClipModel(architecture, str(scripted)).check()


def truncated(folder: Path, tmp_path: Path) -> str:
    path = tmp_path / 'cut.safetensors'
    path.write_bytes((folder / 'open_clip_model.safetensors').read_bytes()[:-100])
    return str(path)


@pytest.mark.parametrize(
    ('model', 'pretrained', 'options', 'text'),
    [
        ('RN5O', None, {}, "'RN50'"),
        ('RN50', 'opnai', {}, "'openai'"),
        ('RN50', 'missing.safetensors', {}, 'does not exist'),
        ('RN50', 'FILE', {}, 'approximate GELU'),
        ('RN50-quickgelu', 'FILE', {'quick_gelu': False}, 'Name the one without'),
        ('RN50', 'openai', {'quick_gelu': True}, 'the tag'),
        ('RN50', 'FILE', {'revision': 'main', 'quick_gelu': True}, 'revision'),
        ('RN50x4-quickgelu', 'CUT', {}, 'safetensors'),
        ('ViT-H-14', None, {}, 'laion2b_s32b_b79k'),
        ('RN50', None, {}, 'network'),
        ('hf-hub:someone/nothing', None, {}, 'network'),
        ('hf-hub:someone/nothing', 'openai', {}, 'its own weights'),
        ('embedded:digits_clap', None, {}, 'embedded'),
        ('embedded:digits_edm', None, {}, 'open_clip_config'),
        ('./nowhere', None, {}, 'no such folder'),
        (3, None, {}, 'wrong kind'),
    ],
)
def test_what_cannot_load_is_refused_before_weights(
    model: Any, pretrained: str | None, options: dict[str, Any], text: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'empty'))
    pretrained = {'FILE': str(folder / 'open_clip_model.safetensors'), 'CUT': truncated(folder, tmp_path)}.get(pretrained or '', pretrained)
    with pytest.raises(ModelError, match=text):
        ClipModel(model, pretrained, **options).check()


def test_a_download_that_times_out_without_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def time_out(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', time_out)
    with pytest.raises(ModelError, match='cannot be had: TimeoutError'):
        ClipModel('hf-hub:someone/nothing').check()


@pytest.mark.parametrize('missing', ['open_clip_config.json', 'open_clip_model.safetensors'])
def test_an_incomplete_folder_is_named(missing: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / 'part')
    (tmp_path / 'part' / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        ClipModel(str(tmp_path / 'part')).check()


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / 'other')
    config = {**CONFIG, 'embed_dim': 23}
    (tmp_path / 'other' / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config}))
    with pytest.raises(ModelError, match='do not load'):
        ClipModel(str(tmp_path / 'other')).load(CPU)


def test_damaged_weights_never_give_silent_nan(folder: Path, tmp_path: Path, images: list[np.ndarray]) -> None:
    from safetensors.torch import save_file

    shutil.copytree(folder, tmp_path / 'nan')
    save_file({**weights_of(folder), 'visual.proj': torch.full((64, 24), torch.nan)}, tmp_path / 'nan' / 'open_clip_model.safetensors')
    model = ClipModel(str(tmp_path / 'nan'))
    model.load(CPU)
    with pytest.raises(ModelError, match='not finite'):
        model.encode_images(images)


# The CLIP filter


def probabilities(clip: ClipModel, images: list[np.ndarray], prompts: list[list[str]]) -> np.ndarray:
    """The formula, in float64."""
    logits = clip.logit_scale * clip.encode_images(images).double().numpy() @ clip.class_embeddings(prompts).double().numpy().T
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_p_is_the_softmax_over_all_classes_of_the_recipe(clip: ClipModel, folder: Path, images: list[np.ndarray]) -> None:
    verdicts = ready(ClipFilter(str(folder))).inspect(requests([0, 1, 2, 2, 0]), images)
    p = probabilities(clip, images, [['a photo of a cat'], ['a photo of a dog'], ['a photo of a red fox']])
    np.testing.assert_allclose(verdicts.scores['clip_p'], p[range(5), [0, 1, 2, 2, 0]], atol=1e-4)
    assert verdicts.scores['clip_argmax'].tolist() == p.argmax(1).tolist()
    assert [r is None for r in verdicts.reasons] == (verdicts.scores['clip_p'] > 1 / 3).tolist()


@pytest.mark.parametrize(
    ('options', 'rule'),
    [
        ({}, lambda p, k, label: p > 1 / 3),
        ({'times_chance': 1.5}, lambda p, k, label: p > 0.5),
        ({'threshold': 0.35}, lambda p, k, label: p > 0.35),
        ({'rule': 'argmax'}, lambda p, k, label: k == label),
    ],
)
def test_each_rule_keeps_exactly_what_it_says(options: dict[str, Any], rule: Callable[..., bool], folder: Path) -> None:
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8))
    labels = [i % 3 for i in range(60)]
    verdicts = ready(ClipFilter(str(folder), **options)).inspect(requests(labels), images)
    rows = zip(verdicts.scores['clip_p'], verdicts.scores['clip_argmax'], labels, strict=True)
    assert [reason is None for reason in verdicts.reasons] == [rule(*row) for row in rows]
    assert {reason is None for reason in verdicts.reasons} == {True, False}


def test_the_reason_says_p_and_the_limit(folder: Path, images: list[np.ndarray]) -> None:
    verdicts = ready(ClipFilter(str(folder), threshold=0.999999)).inspect(requests([0] * 5), images)
    for p, reason in zip(verdicts.scores['clip_p'], verdicts.reasons, strict=True):
        assert reason == f'CLIP filter (p = {p:.4f}, not above 1.0000)'
    assert any('for ' in str(r) for r in ready(ClipFilter(str(folder), rule='argmax')).inspect(requests([0, 1, 2, 0, 1]), images).reasons)


def test_texts_are_encoded_once(folder: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    inspector, calls = ready(ClipFilter(str(folder), templates=['a {}', 'the {}'])), []
    original = ClipModel.encode_texts
    monkeypatch.setattr(ClipModel, 'encode_texts', lambda self, texts: calls.append(list(texts)) or original(self, texts))
    for _ in range(3):
        inspector.inspect(requests([0, 1, 2, 0, 1]), images)
    assert calls == [['a cat', 'the cat', 'a dog', 'the dog', 'a red fox', 'the red fox']]


def test_templates_and_data_set_wording_decide_the_identity(folder: Path) -> None:
    def identity(classes: tuple[str, ...] = CLASSES, **options: Any) -> str:
        return json.dumps(ready(ClipFilter(str(folder), **options), classes).identity(), sort_keys=True)

    found = [identity(), identity(templates='a {}'), identity(templates='cifar'), identity(rule='argmax'), identity(times_chance=2), identity(threshold=0.1)]
    found += [identity(('AnnualCrop', 'River'), dataset='eurosat')]
    assert len(set(found)) == len(found)
    assert 'a centered satellite photo of {}' in found[-1]
    assert 'annual crop land' in found[-1].casefold()


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'rule': 'max'}, 'argmax'),
        ({'threshold': 1.0}, r'\[0, 1\)'),
        ({'threshold': 0.1, 'rule': 'argmax'}, 'contradicts'),
        ({'threshold': 0.1, 'times_chance': 2}, 'needs'),
        ({'times_chance': -1}, 'positive'),
        ({'templates': 'a photo'}, 'placeholder'),
        ({'dataset': 'eurosatt'}, 'eurosat'),
    ],
)
def test_wrong_options_are_refused_with_a_cure(options: dict[str, Any], text: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=text):
        ClipFilter(str(folder), **options)


def test_classes_that_cannot_be_compared_are_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match='only one'):
        ClipFilter(str(folder)).check(['cat'], None)
    with pytest.raises(RecipeError, match='nothing would be kept'):
        ClipFilter(str(folder), times_chance=3).check(CLASSES, None)
    with pytest.raises(RecipeError, match='tokens too long'):
        ClipFilter(str(folder), templates='a photo of a {} in a very long sentence that goes on and on').check(CLASSES, None)
    with pytest.raises(DataError, match='WordNet'):
        ClipFilter(str(folder)).check(['n01440764', 'n01443537'], None)


def recipe(folder: Path, data: str | None = None, **keys: Any) -> dict[str, Any]:
    generator = {'type': 'EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2}}
    return complete(
        {'generator': generator, 'classes': ['three', 'five', 'eight'], 'per_class': 6, 'block_size': 3, 'batch_size': 4, 'data': data}
        | {'image': {'keep_rejected': True}, 'inspectors': [{'type': 'ClipFilter', 'model': str(folder)}]}
        | keys
    )


def made(recipe: dict[str, Any], out: Path) -> Store:
    try:
        return generate(recipe, out, 'cpu', quiet=True)
    except QuotaShortfall:
        return Store.open(out)


def test_a_store_holds_what_the_rule_says_and_can_be_chosen_from_again(folder: Path, tmp_path: Path, no_network: None) -> None:
    store = made(recipe(folder), tmp_path / 's')
    rows = store.index().to_pylist()
    assert {r['verdict'] for r in rows} == {'kept', 'rejected'}
    assert [r['verdict'] == 'kept' for r in rows] == [r['clip_p'] > 1 / 3 for r in rows]

    def ids(**options: Any) -> set[str]:
        return set(select(store, rejected=True, allow_empty=True, **options).table['id'].to_pylist())

    assert ids(where='clip_p > 1/3') == {r['id'] for r in rows if r['verdict'] == 'kept'}
    assert ids(where='clip_argmax = label') == {r['id'] for r in rows if r['clip_argmax'] == r['label']}
    for label in range(3):
        mine = sorted((r for r in rows if r['label'] == label), key=lambda r: -r['clip_p'])
        best = ids(where=f'label = {label}', top_k=3, by='clip_p')
        assert best == {r['id'] for r in mine[:3]}
        limit = np.quantile([r['clip_p'] for r in mine], 0.2)
        better = ids(where='clip_p >= quantile_cont(clip_p, 0.2) over (partition by class)') & {r['id'] for r in mine}
        assert better == {r['id'] for r in mine if r['clip_p'] >= limit - 1e-12}
        # The paper's code: 5 of those above chance; if there are fewer, the best 5.
        chosen = ids(where='clip_p > 1/3 or row_number() over (partition by class order by clip_p desc) <= 5', sample=5) & {r['id'] for r in mine}
        above = {r['id'] for r in mine if r['clip_p'] > 1 / 3}
        assert len(chosen) == 5
        assert chosen <= above if len(above) >= 5 else chosen == {r['id'] for r in mine[:5]}
    above_by_class = [sum(r['clip_p'] > 1 / 3 for r in rows if r['label'] == label) for label in range(3)]
    assert min(above_by_class) < 5 < max(above_by_class), 'both cases were to be seen'
    again = made(recipe(folder), tmp_path / 'again')
    assert again.index().equals(store.index())


def test_a_filter_that_keeps_nothing_stops_and_says_so_by_class(folder: Path, tmp_path: Path) -> None:
    nothing = [{'type': 'ClipFilter', 'model': str(folder), 'threshold': 0.9999999}]
    with pytest.raises(QuotaShortfall, match=r'three: 0 of 6 .*12 CLIP filter.*five: 0 of 6') as short:
        generate(recipe(folder, inspectors=nothing, tries_per_image=2), tmp_path / 's', 'cpu', quiet=True)
    assert short.value.exit_code == 3
    assert len(Store.open(tmp_path / 's').index()) == 36


def test_the_plan_knows_the_filters_weights(folder: Path, tmp_path: Path) -> None:
    other = save(tmp_path / 'tiny', seed=1)
    plans = [prepare(recipe(path)).plan for path in (folder, other)]
    assert plans[0].fingerprint != plans[1].fingerprint


# On digits, with the CLIP that the package carries


DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def digit_requests(labels: list[int]) -> list[Request]:
    return [Request(f'00000_{i:06d}', label, DIGITS[label], i) for i, label in enumerate(labels)]


@pytest.fixture(scope='module')
def unseen_digits() -> tuple[list[np.ndarray], list[int]]:
    """Real digits by writers whom no embedded model saw."""
    digits = pytest.importorskip('sklearn.datasets').load_digits()
    return [np.repeat((x * 255 / 16).round().astype(np.uint8)[..., None], 3, 2) for x in digits.images[1200:]], digits.target[1200:].tolist()


@pytest.mark.parametrize('options', [{}, {'rule': 'argmax'}, {'templates': ['a photo of a {}', 'a photo of the digit {}']}], ids=str)
def test_right_digits_pass_and_wrong_ones_do_not(options: dict[str, Any], unseen_digits: tuple[list[np.ndarray], list[int]]) -> None:
    images, labels = unseen_digits
    inspector = ready(ClipFilter('embedded:digits_clip', **options), DIGITS)
    right = inspector.inspect(digit_requests(labels), images)
    assert sum(reason is None for reason in right.reasons) > 0.85 * len(images)
    for shift in (1, 5):
        wrong = inspector.inspect(digit_requests([(label + shift) % 10 for label in labels]), images)
        assert sum(reason is None for reason in wrong.reasons) < 0.1 * len(images)


def test_generated_digits_pass_under_their_own_label_only(tmp_path: Path) -> None:
    inspectors = [{'type': 'ClipFilter', 'model': 'embedded:digits_clip'}, {'type': 'SoftLabels', 'model': 'embedded:digits_clip'}]
    good = recipe(Path(), classes=list(DIGITS), per_class=3, block_size=3, inspectors=inspectors)
    good['generator']['sampler'] = {'num_steps': 10}
    store = generate(good, tmp_path / 's', 'cpu', quiet=True)
    rows = store.index().to_pylist()
    assert [r['verdict'] == 'kept' for r in rows] == [r['clip_p'] > 1 / 10 for r in rows]
    assert sum(r['clip_argmax'] == r['label'] for r in rows if r['verdict'] == 'kept') >= 27
    for r in rows:  # the teacher is the same network: its softmax is the filter's p
        e = np.exp(np.array(r['teacher_logits'], float))
        assert e[r['label']] / e.sum() == pytest.approx(r['clip_p'], abs=0.02)


def test_real_filter_tells_digits_apart(tmp_path: Path, unseen_digits: tuple[list[np.ndarray], list[int]]) -> None:
    images, labels = unseen_digits
    for label, name in enumerate(DIGITS):
        (tmp_path / name).mkdir()
        for i in [i for i, own in enumerate(labels) if own == label][:8]:
            Image.fromarray(images[i]).save(tmp_path / name / f'{i}.png')
    photos = RealImages(tmp_path)
    taken = {int(Path(i).stem) for name in DIGITS for i in photos.ids(name)}
    rest = [i for i in range(len(images)) if i not in taken]
    for mode in ('nearest', 'prototype'):
        inspector = ready(RealFilter('embedded:digits_clip', mode=mode), DIGITS, photos)
        right = inspector.inspect(digit_requests([labels[i] for i in rest]), [images[i] for i in rest])
        wrong = inspector.inspect(digit_requests([(labels[i] + 3) % 10 for i in rest]), [images[i] for i in rest])
        assert sum(reason is None for reason in right.reasons) > 0.8 * len(rest)
        assert sum(reason is None for reason in wrong.reasons) < 0.1 * len(rest)


# The real filter


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(2)
    for name, count in zip(CLASSES, (3, 1, 4), strict=True):
        (root / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 40, 3)).astype(np.uint8)).save(root / name / f'{i}.png')
    return RealImages(root)


@pytest.mark.parametrize('mode', ['nearest', 'prototype'])
@pytest.mark.parametrize('margin', [0.0, 0.05, -0.05])
def test_real_filter_compares_own_with_other_classes(
    mode: str, margin: float, folder: Path, clip: ClipModel, photos: RealImages, images: list[np.ndarray]
) -> None:
    labels = [0, 1, 2, 1, 0]
    verdicts = ready(RealFilter(str(folder), mode=mode, margin=margin), real=photos).inspect(requests(labels), images)
    features = {c: clip.encode_images([photos.load(i) for i in photos.ids(c)]).double().numpy() for c in CLASSES}
    if mode == 'prototype':
        features = {c: (f.mean(0) / np.linalg.norm(f.mean(0)))[None] for c, f in features.items()}
    for i, x in enumerate(clip.encode_images(images).double().numpy()):
        best = [(features[c] @ x).max() for c in CLASSES]
        own, other = best[labels[i]], max(b for k, b in enumerate(best) if k != labels[i])
        assert verdicts.scores['real_own'][i] == pytest.approx(own, abs=1e-5)
        assert verdicts.scores['real_other'][i] == pytest.approx(other, abs=1e-5)
    keep = verdicts.scores['real_other'] <= verdicts.scores['real_own'] + margin
    assert [reason is None for reason in verdicts.reasons] == keep.tolist()


def test_a_copy_of_a_foreign_real_image_is_rejected_and_of_its_own_kept(folder: Path, photos: RealImages) -> None:
    inspector = ready(RealFilter(str(folder)), real=photos)
    dog = photos.load(photos.ids('dog')[0])
    verdicts = inspector.inspect(requests([0, 1]), [dog, dog])
    assert str(verdicts.reasons[0]).startswith('real filter (cos 1.0000 to another class')
    assert verdicts.reasons[1] is None


def test_real_images_are_encoded_once_and_anew_after_setup(folder: Path, photos: RealImages, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    inspector, loads = ready(RealFilter(str(folder)), real=photos), []
    original = RealImages.load
    monkeypatch.setattr(RealImages, 'load', lambda self, i: loads.append(i) or original(self, i))
    for _ in range(2):
        inspector.inspect(requests([0]), images[:1])
    assert sorted(loads) == sorted(i for c in CLASSES for i in photos.ids(c))
    inspector.setup(CPU, CLASSES, photos)
    inspector.inspect(requests([0]), images[:1])
    assert len(loads) == 16


def test_real_filter_refuses_what_it_cannot_compare(folder: Path, photos: RealImages) -> None:
    with pytest.raises(RecipeError, match='only one'):
        RealFilter(str(folder)).check(['cat'], photos)
    with pytest.raises(DataError, match="'dog'"):
        RealFilter(str(folder)).check(['cat', 'dgo'], photos)
    with pytest.raises(RecipeError, match='nearest'):
        RealFilter(str(folder), mode='mean')
    with pytest.raises(RecipeError, match='margin'):
        RealFilter(str(folder), margin=3)
    with pytest.raises(RecipeError, match='--data'):
        prepare(recipe(folder, inspectors=[{'type': 'RealFilter', 'model': str(folder)}]))


# What inspectors share


def test_inspectors_of_one_clip_load_it_once_and_show_it_each_image_once(
    folder: Path, tmp_path: Path, images: list[np.ndarray], photos: RealImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = shutil.copytree(folder, tmp_path / 'elsewhere')
    found = [ready(inspector(str(place)), real=photos) for inspector, place in ((ClipFilter, folder), (SoftLabels, same), (RealFilter, same))]
    for inspector in found:
        inspector.inspect(requests([0]), images[:1])  # what is made once: weights, prompts, real images
    networks = {id(inspector.clip.model if isinstance(inspector, RealFilter) else inspector.zero_shot.clip.model) for inspector in found}
    assert len(networks) == 1
    seen: list[int] = []
    original = ClipModel.encode_images
    monkeypatch.setattr(ClipModel, 'encode_images', lambda self, part: seen.append(len(part)) or original(self, part))
    together = [inspector.inspect(requests([0, 1, 2]), images[:3]) for inspector in found]
    assert seen == [3]
    for inspector, verdicts in zip(found, together, strict=True):
        inspector.inspect(requests([0]), images[3:4])
        alone = inspector.inspect(requests([0, 1, 2]), [image.copy() for image in images[:3]])
        assert alone.reasons == verdicts.reasons
        assert all(np.array_equal(alone.scores[name], column) for name, column in verdicts.scores.items())


def test_features_are_of_the_pixels_as_they_are_now(clip: ClipModel, images: list[np.ndarray]) -> None:
    batch = [image.copy() for image in images]
    before = clip.batch_features(batch)
    batch[1][:] = 255 - batch[1]
    after = clip.batch_features(batch)
    assert torch.equal(after, clip.encode_images(batch))
    assert not torch.equal(after[1], before[1])


def test_a_clip_is_freed_with_its_last_user(tmp_path: Path) -> None:
    from synthaug_plugins.curation.clip_loaded import _LOADED

    model = ClipModel(str(save(tmp_path / 'freed', seed=7)))
    model.load(CPU)
    key = model.identity()['sha256'], 'cpu'
    assert key in _LOADED
    del model
    gc.collect()
    assert key not in _LOADED


def test_a_clip_runs_in_full_float32(clip: ClipModel, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in a thread beside a sampler that turns the process's switches: its scores must not depend on when."""
    seen = []
    original = clip.model.encode_image
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    monkeypatch.setattr(clip.model, 'encode_image', lambda x: seen.append(torch.backends.cudnn.allow_tf32) or original(x))
    clip.encode_images(images)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32
