"""The Inception of FID gives what torch-fidelity's gives for the same weights, and nothing stands in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from synthaug_plugins.curation.inception_network import FILES, InceptionNetwork, _architecture
from synthaug_plugins.errors import ModelError
from synthaug_plugins.evaluation.metrics.features import feature_network

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of the published layout, with drawn numbers."""
    rng = torch.Generator().manual_seed(0)

    def drawn(name: str, like: torch.Tensor) -> torch.Tensor:
        if like.ndim > 1:
            return torch.randn(like.shape, generator=rng) * (2 / like[0].numel()) ** 0.5
        return 1 + 0.1 * torch.rand(like.shape, generator=rng) if 'var' in name or name.endswith('weight') else 0.1 * torch.randn(like.shape, generator=rng)

    path = tmp_path_factory.mktemp('inception') / 'weights-inception.pth'
    torch.save({name: drawn(name, like) for name, like in sorted(_architecture().state_dict().items()) if like.dtype == torch.float32}, path)
    return path


def test_features_are_those_of_torchmetrics_network(weights: Path) -> None:
    """The numbers: torchmetrics 1.9.0's NoTrainInceptionV3 on torch-fidelity 0.4.0, with this file and these images."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(2)]
    network = feature_network(f'inception:{weights}')
    network.check()
    network.setup(CPU)
    found = network.encode(images)
    assert found.shape == (2, 2048) and found.dtype == np.float32
    expected = [[1.9263297, 0.5268215, 0.35389408, 1.4270282], [1.9447855, 0.54933393, 0.36726844, 1.4137357]]
    np.testing.assert_allclose(found[:, ::512], expected, rtol=1e-4)
    assert (found.min(1) >= 0).all()  # an average of rectified maps


def test_another_file_than_the_published_is_told(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = feature_network(f'inception:{weights}')
    assert any('not the file that published FIDs are made with' in note for note in network.notes())
    assert network.identity()['name'] == 'inception:weights-inception.pth' and len(network.identity()['sha256']) == 64
    monkeypatch.setattr('synthaug_plugins.curation.inception_network.file_hash', lambda path: '6726825d' + 56 * '0')
    assert not network.notes()


def test_no_other_network_stands_in(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='no weights of Inception') as refused:
        InceptionNetwork(str(tmp_path / 'gone.pth')).check()
    assert FILES in refused.value.cure
    torch.save({'fc.weight': torch.zeros(1000, 2048)}, tmp_path / 'other.pth')  # torchvision's has 1000 classes
    (tmp_path / 'text.pth').write_text('no pickle')
    torch.save({'model': Path('code')}, tmp_path / 'code.pth')
    for name in ('other', 'text', 'code'):
        with pytest.raises(ModelError, match='holds no weights of the Inception of FID'):
            InceptionNetwork(str(tmp_path / f'{name}.pth')).setup(CPU)
    with pytest.raises(ModelError, match='were not loaded'):
        InceptionNetwork('x').encode([np.zeros((2, 2, 3), np.uint8)])
