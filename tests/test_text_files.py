"""The files of a pipeline: refused with the reason before weights load, pinned on the hub, and never a reason to use the network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import pytest
import tiny_pipelines as tiny
import torch

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.text_model import TextModel, open_model
from synthaug_plugins.weights import embedded_folder

CPU = torch.device('cpu')
BUILDERS = {'sd': tiny.sd, 'flux dev': tiny.flux, 'sana': tiny.sana}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pipeline, built when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp('pipelines'))
        return made[name]

    return get


def test_identity_follows_every_file_that_makes_pixels(folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder('sd'), tmp_path / 'pipeline'))
    (copy / 'README.md').write_text('---\nlicense: openrail\n---\nA model.')
    before = TextModel(str(copy)).identity()
    assert before['licence'] == 'openrail'
    assert before['sha256'] == TextModel(str(folder('sd'))).identity()['sha256']
    seen = {before['sha256']}
    for path in ('unet/diffusion_pytorch_model.safetensors', 'text_encoder/model.safetensors', 'tokenizer/tokenizer.json', 'scheduler/scheduler_config.json'):
        file = copy / path
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:] if path.endswith('safetensors') else content + b'\n')
        seen.add(TextModel(str(copy)).identity()['sha256'])
    assert len(seen) == 5
    small = TextModel(str(copy), image_size=32).identity()
    assert small['image_size'] == [32, 32]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def to_pickle(path: Path) -> None:
    path.rename(path.with_name(path.name.replace('.safetensors', '.bin')))


def inpainting(folder: Path, **unet: Any) -> None:
    """A pipeline that says it is one for inpainting."""
    edit(folder / INDEX, _class_name='StableDiffusionInpaintPipeline')
    edit(folder / 'unet/config.json', **unet)


INDEX, UNET = 'model_index.json', 'unet/diffusion_pytorch_model.safetensors'


@pytest.mark.parametrize(
    ('spoil', 'named'),
    [
        (lambda f: edit(f / INDEX, _class_name='StableDiffusionInstructPix2PixPipeline'), 'sees a given image too.*Supported are StableDiffusionPipeline'),
        (lambda f: edit(f / INDEX, requires_aesthetics_score=True), 'aesthetic score'),
        (lambda f: edit(f / INDEX, _class_name='AudioLDMPipeline'), 'AudioLDMPipeline has no adapter'),
        (lambda f: edit(f / INDEX, _class_name=['pipeline', 'Mine']), 'no adapter'),
        (lambda f: edit(f / INDEX, unet=['my_code', 'MyUNet']), 'MyUNet'),
        (lambda f: edit(f / INDEX, scheduler=['my_code', 'MyScheduler']), 'never run'),
        (lambda f: edit(f / INDEX, text_encoder=['transformers', 'AutoModel']), 'AutoModel, which is no model'),
        (lambda f: edit(f / INDEX, tokenizer=['transformers', 'pipeline']), 'pipeline, which is no model'),
        (lambda f: edit(f / INDEX, text_encoder=[None, None]), 'names no text_encoder'),
        (lambda f: edit(f / INDEX, scheduler=['diffusers', 'NoSuchScheduler']), 'NoSuchScheduler'),
        (lambda f: (f / INDEX).unlink(), 'model_index.json is missing'),
        (lambda f: (f / INDEX).write_text('{'), 'valid JSON'),
        (lambda f: shutil.rmtree(f / 'tokenizer'), 'folder tokenizer is missing'),
        (lambda f: (f / 'unet/config.json').unlink(), 'unet/config.json is missing'),
        (lambda f: (f / UNET).unlink(), f'{UNET} is missing'),
        (lambda f: to_pickle(f / 'text_encoder/model.safetensors'), 'pickle .text_encoder/model.bin.* run code.*safe_serialization'),
        (lambda f: (f / UNET).rename(f / UNET.replace('model.', 'model.fp16.')), "set variant='fp16'"),
        (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-10]), 'cannot be read as safetensors'),
        (lambda f: edit(f / 'unet/config.json', cross_attention_dim=24), 'do not fit its config'),
        (lambda f: edit(f / 'unet/config.json', in_channels=9), '9 channels'),
        (lambda f: inpainting(f, in_channels=8), 'takes 8 channels and returns 4.*it takes 9'),
        (lambda f: inpainting(f, in_channels=9), 'do not fit its config'),
        (lambda f: edit(f / 'scheduler/scheduler_config.json', _class_name='ScoreSdeVeScheduler'), 'ScoreSdeVe'),
    ],
)
def test_what_cannot_work_is_refused_before_weights_load(
    folder: Callable[[str], Path], tmp_path: Path, spoil: Callable[[Path], Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder('sd'), tmp_path / 'pipeline'))
    spoil(copy)
    monkeypatch.setattr(diffusers.UNet2DConditionModel, 'from_pretrained', lambda *_, **__: pytest.fail('weights were loaded'))
    with pytest.raises(ModelError, match=f'(?s){named}'):
        TextModel(str(copy)).check_weights()


@pytest.mark.parametrize(('size', 'multiple'), [(15, 2), (0, 2), ((16, 16, 16), 2), (True, 2), ((16, 17), 2)])
def test_sizes_that_the_model_cannot_make_are_refused(folder: Callable[[str], Path], size: Any, multiple: int) -> None:
    with pytest.raises(RecipeError, match=f'image_size.*multiples of {multiple}; 16 x 16'):
        TextModel(str(folder('sd')), image_size=size)


def test_flux_needs_an_even_number_of_latents(folder: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match='multiples of 4; 256 x 256'):
        TextModel(str(folder('flux dev')), image_size=18)


@pytest.mark.parametrize(
    ('file', 'text', 'named'),
    [
        (INDEX, '{}', f'has no _class_name in {INDEX}'),
        ('unet/config.json', '{}', 'unet/config.json names no in_channels'),
        ('text_encoder/config.json', '[]', 'text_encoder/config.json.* no JSON object'),
        ('text_encoder/config.json', '{"a":', 'text_encoder/config.json.* not valid JSON'),
        ('tokenizer/tokenizer_config.json', '{}', 'tokenizer/tokenizer_config.json is missing or names no model_max_length'),
        ('tokenizer/tokenizer_config.json', '{', r'tokenizer cannot be read: .*\. Copy'),
    ],
)
def test_damaged_configs_are_refused_before_weights_load(file: str, text: str, named: str, tmp_path: Path) -> None:
    model = tmp_path / 'sd'
    shutil.copytree(embedded_folder('embedded:digits_sd'), model)
    (model / file).write_text(text)

    def look() -> None:
        read = TextModel(str(model))
        read.fit_prompt('a photo')
        read.check_weights()

    with pytest.raises(ModelError, match=named):
        look()


def test_names_that_are_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'v1.ckpt').write_bytes(b'')
    for name, named in ((str(tmp_path / 'v1.ckpt'), 'is a file'), (str(tmp_path / 'no' / 'such'), 'no such folder'), ('embedded:none', 'no embedded model')):
        with pytest.raises(ModelError, match=named):
            TextModel(name)
    with pytest.raises(ModelError, match='no revisions'):
        TextModel(str(tmp_path), revision='main')
    with pytest.raises(ModelError, match=r"single file 'v1.ckpt'"):
        TextModel(str(tmp_path))


# --- folders and the hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to connect is noted and fails; the offline switch is off, so that nothing is kept from trying."""
    tried: list[Any] = []

    def refuse(self: Any, address: Any) -> None:
        tried.append(address)
        raise OSError('no network')

    for name in ('connect', 'connect_ex'):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *a, **_: refuse(None, a))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    return tried


@pytest.mark.parametrize('name', ['sd', 'flux dev', 'sana'])
def test_a_folder_needs_no_network(folder: Callable[[str], Path], no_network: list[Any], name: str) -> None:
    model = TextModel(str(folder(name)), image_size=16 if name == 'flux dev' else None)
    model.fit_prompt('a photo')
    model.check_weights()
    model.identity()
    denoiser = model.load(CPU, torch.float32)
    denoiser(torch.randn(2, *model.size), torch.tensor(2.0), model.conditions(['a photo', 'two']))
    assert no_network == []


@pytest.fixture
def hub(folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with one repository, the tiny Stable Diffusion, and an empty cache."""
    commit = '0123456789abcdef0123456789abcdef01234567'
    state = SimpleNamespace(commit=commit, source=folder('sd'), fetched=[], revisions=[])
    snapshot = tmp_path / 'models--me--tiny' / 'snapshots' / commit

    def model_info(self: Any, name: str, revision: str | None = None) -> Any:
        state.revisions.append(revision)
        files = [p.relative_to(state.source).as_posix() for p in state.source.rglob('*') if p.is_file()]
        return SimpleNamespace(sha=commit, siblings=[SimpleNamespace(rfilename=f) for f in files])

    def snapshot_download(name: str, revision: str | None = None, allow_patterns: Any = None, local_files_only: bool = False) -> str:
        from fnmatch import fnmatch

        assert revision == commit, 'not pinned'
        for path in state.source.rglob('*'):
            relative = path.relative_to(state.source).as_posix()
            if path.is_file() and any(fnmatch(relative, pattern) for pattern in allow_patterns):
                (snapshot / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / relative)
                state.fetched.append(relative)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', model_info)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    return state


def test_a_hub_model_is_pinned_and_its_weights_come_at_load(hub: SimpleNamespace) -> None:
    model = TextModel('me/tiny', revision='main')
    model.check_weights()
    assert model.fit_prompt('a photo')[1] == []
    assert model.identity() == {'name': 'me/tiny', 'revision': hub.commit, 'variant': None, 'image_size': [16, 16], 'licence': None}
    assert hub.revisions == ['main']
    assert not [f for f in hub.fetched if f.endswith('.safetensors')]
    model.load(CPU, torch.float32)
    weights = [f for f in hub.fetched if f.endswith('.safetensors')]
    assert sorted(weights) == ['text_encoder/model.safetensors', UNET, 'vae/diffusion_pytorch_model.safetensors']


def test_identity_says_which_variant_a_commit_was_loaded_in(hub: SimpleNamespace, tmp_path: Path) -> None:
    """A cache that lacks the variant gives the other weights of the same commit."""
    without = TextModel('me/tiny', variant='fp16').identity()
    hub.source = Path(shutil.copytree(hub.source, tmp_path / 'source'))
    (hub.source / UNET).rename(hub.source / UNET.replace('model.', 'model.fp16.'))
    assert TextModel('me/tiny', variant='fp16').identity() != without


def test_identity_names_a_file_that_is_missing(folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder('sd'), tmp_path / 'pipeline'))
    (copy / 'text_encoder/config.json').unlink()
    with pytest.raises(ModelError, match=r'text_encoder/config\.json is missing'):
        TextModel(str(copy)).identity()


def test_a_download_that_times_out_without_a_word_is_refused(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', time_out)
    with pytest.raises(ModelError, match=r'from the hub: TimeoutError\. Fetch it first'):
        TextModel('me/tiny')


def test_a_hub_model_with_pickles_only_is_refused_from_its_list_of_files(hub: SimpleNamespace, tmp_path: Path) -> None:
    hub.source = Path(shutil.copytree(hub.source, tmp_path / 'source'))
    to_pickle(hub.source / UNET)
    with pytest.raises(ModelError, match='pickle'):
        TextModel('me/tiny').check_weights()


def answer(error: type[Exception]) -> Exception:
    import inspect

    wants_response = 'response' in inspect.signature(error).parameters
    return error('said the hub', response=SimpleNamespace(headers={}, request=None, status_code=404)) if wants_response else error('said the hub')


@pytest.mark.parametrize(
    ('error', 'named'),
    [
        (huggingface_hub.errors.GatedRepoError, 'is gated.*Accept its terms'),
        (huggingface_hub.errors.RepositoryNotFoundError, 'no repository of the hub'),
        (huggingface_hub.errors.RevisionNotFoundError, "revision = 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: type[Exception], named: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise answer(error)

    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', fail)
    with pytest.raises(ModelError, match=named):
        TextModel('me/tiny', revision='v9')


def test_offline_uses_the_cache_or_says_so(folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ModelError, match='not in the cache of the hub, and HF_HUB_OFFLINE=1'):
        TextModel('me/tiny')
    repository, commit = tmp_path / 'models--me--tiny', 'f' * 40
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text(commit)
    shutil.copytree(folder('sd'), repository / 'snapshots' / commit)
    model = TextModel('me/tiny')
    model.load(CPU, torch.float32)
    assert model.identity()['revision'] == commit
    (repository / 'snapshots' / commit / UNET).unlink()
    with pytest.raises(ModelError, match='hf download me/tiny'):
        TextModel('me/tiny').check_weights()
    assert no_network == []


def test_no_connection_is_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    # A pinned revision, too: the hub's client would ask for its files again and again.
    with pytest.raises(ModelError, match=r'cannot be fetched from the hub: .*no network.*hf download'):
        TextModel('me/tiny', revision='0123456789abcdef0123456789abcdef01234567')
    assert 1 <= len(no_network) <= 2  # the client also asks once for a list of its own


def test_models_of_both_kinds_are_opened_by_name(folder: Callable[[str], Path]) -> None:
    assert isinstance(open_model(str(folder('sd')), image_size=32), TextModel)
    assert isinstance(open_model('embedded:digits_edm'), DenoiserModel)
    with pytest.raises(RecipeError, match='image_size'):
        open_model('embedded:digits_edm', image_size=32)
    with pytest.raises(ModelError, match='pipeline of diffusers'):
        DenoiserModel(str(folder('sd')))
