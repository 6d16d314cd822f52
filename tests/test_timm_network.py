"""Networks of timm as feature extractors, on networks with random weights that are saved as timm saves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from synthaug_plugins.curation.timm_network import TimmNetwork
from synthaug_plugins.errors import ModelError

CPU = torch.device('cpu')
SMALL = 'test_resnet'  # timm's own smallest, of 160 pixels


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A network with random weights, and the folder that holds it."""
    torch.manual_seed(0)
    model = timm.create_model(SMALL, num_classes=7).eval()
    folder = tmp_path_factory.mktemp('timm') / 'network'
    save_for_hf(model, str(folder), safe_serialization=True)
    return model, folder


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size + 10, 3), dtype=np.uint8) for size in (8, 50)]


def expected(model: torch.nn.Module, images: list[np.ndarray]) -> np.ndarray:
    from PIL import Image

    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    with torch.inference_mode():
        return model.forward_head(model.forward_features(torch.stack([transform(Image.fromarray(i)) for i in images])), pre_logits=True).numpy()


def test_a_folder_gives_the_features_before_the_classifier(network: tuple[torch.nn.Module, Path], images: list[np.ndarray], no_network: None) -> None:
    found = TimmNetwork(str(network[1]))
    found.check()
    found.setup(CPU)
    np.testing.assert_allclose(found.encode(images), expected(network[0], images), rtol=1e-4, atol=1e-5)
    assert found.identity() == TimmNetwork(f'local-dir:{network[1]}').identity() and len(found.identity()['sha256']) == 64
    assert found.encode([]).shape == (0, 0)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_a_weight_file_of_any_number_of_classes_loads_by_name(
    network: tuple[torch.nn.Module, Path], images: list[np.ndarray], tmp_path: Path, suffix: str
) -> None:
    model, file = network[0], tmp_path / f'weights{suffix}'
    save_file(model.state_dict(), file) if suffix == '.safetensors' else torch.save({'state_dict': model.state_dict()}, file)
    found = TimmNetwork(SMALL, str(file))
    found.check()
    found.setup(CPU)
    np.testing.assert_allclose(found.encode(images), expected(model, images), rtol=1e-4, atol=1e-5)


def test_features_are_differentiable_and_those_of_the_transform_at_its_own_size(network: tuple[torch.nn.Module, Path]) -> None:
    found = TimmNetwork(str(network[1]))
    found.setup(CPU)
    pixels = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1).requires_grad_()
    given = found.features(x)
    found._source.input['crop_pct'] = 1.0
    np.testing.assert_allclose(given.detach().numpy(), found.encode([pixels]), rtol=1e-3, atol=1e-4)
    given.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert found.features(torch.zeros(1, 3, 8, 8)).shape == given.shape


def test_weights_that_lack_a_tensor_are_refused_not_filled_with_chance(network: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    tensors = network[0].state_dict()
    del tensors['conv1.0.weight']
    save_file(tensors, tmp_path / 'cut.safetensors')
    with pytest.raises(ModelError, match='do not load'):
        TimmNetwork(SMALL, str(tmp_path / 'cut.safetensors')).setup(CPU)


class RunsCode:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({'conv1.0.weight': RunsCode(tmp_path / 'ran')}, tmp_path / 'weights.pth')
    # As timm read weights in its earlier versions.
    careless = lambda path, *_, **__: torch.load(path, weights_only=False)  # noqa: E731
    monkeypatch.setattr(timm.models, 'load_state_dict', careless)
    monkeypatch.setattr('timm.models._builder.load_state_dict', careless)
    with pytest.raises(ModelError, match=r'do not load.*may hold tensors only'):
        TimmNetwork(SMALL, str(tmp_path / 'weights.pth')).setup(CPU)
    assert not (tmp_path / 'ran').exists()


def test_bad_names_are_refused_with_a_cure(network: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    for name, checkpoint, said in (
        ('resnet81', None, 'none of the networks'),
        ('resnet18.nope', None, 'no weights'),
        ('test_resnet.r160_in1k', None, 'cannot be had'),
        ('./nowhere', None, 'no such folder'),
        (str(tmp_path), None, 'config.json is missing'),
        (str(network[1]), 'x.pth', 'own weights'),
        (SMALL, 'nowhere.pth', 'does not exist'),
        ('legacy_senet154.in1k', None, 'on the hub'),
    ):
        with pytest.raises(ModelError, match=said) as refused:
            TimmNetwork(name, checkpoint).check()
        assert refused.value.cure
    (tmp_path / 'bad.safetensors').write_bytes(b'none')
    with pytest.raises(ModelError, match='safetensors'):
        TimmNetwork(SMALL, str(tmp_path / 'bad.safetensors')).check()
    with pytest.raises(ModelError, match='setup'):
        TimmNetwork(SMALL).encode([])
