"""Distances between images: LPIPS on weights from files, cosines of features."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import digits
from synthaug_plugins.errors import MissingExtra, ModelError, RecipeError, SynthAugError
from synthaug_plugins.registry import DISTANCES
from synthaug_plugins.weights import file_hash

pytestmark = pytest.mark.filterwarnings('ignore:.*pretrained.*:UserWarning', 'ignore:Arguments other than a weight enum:UserWarning')


@pytest.fixture(scope='module')
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Weights of a network as torchvision names them, and the package's own LPIPS with these."""
    import lpips

    torch.manual_seed(0)
    own = lpips.LPIPS(net='squeeze', pnet_rand=True, verbose=False)
    path = tmp_path_factory.mktemp('weights') / 'squeeze.pth'
    torch.save({f'features.{name.partition(".")[2]}': values for name, values in own.net.state_dict().items()}, path)
    return path, own


def test_lpips_is_that_of_its_package(squeeze: tuple[Path, Any]) -> None:
    path, own = squeeze
    distance = DISTANCES.build({'type': 'synthaug_plugins.LPIPS', 'network': 'squeeze', 'weights': str(path)})
    distance.check((32, 40))
    distance.setup(torch.device('cpu'))
    a, b = torch.rand(2, 3, 3, 32, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(distance(a, b), own(a, b).flatten())
    torch.testing.assert_close(distance(a[:, :1], b[:, :1]), own(a[:, :1].expand(-1, 3, -1, -1), b[:, :1].expand(-1, 3, -1, -1)).flatten())
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(flat, flat.detach()).sum().backward()
    assert bool(flat.grad.isfinite().all())  # type: ignore[union-attr]  the package's own is not a number there
    assert distance.identity() == {'type': 'LPIPS', 'version': '0.1', 'network': 'squeeze', 'sha256': file_hash(path)}


def test_lpips_without_its_weights_is_refused_with_the_cure(
    squeeze: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def refused(error: type[SynthAugError], text: str, load: bool = False, **options: Any) -> None:
        distance = DISTANCES.build({'type': 'LPIPS', **options})
        if load:
            distance.check()
        with pytest.raises(error, match=text):
            distance.setup(torch.device('cpu')) if load else distance.check()

    refused(ModelError, r"vgg16-397923af\.pth are not in .*HF_HUB_OFFLINE.*weights='vgg16-397923af\.pth', or use distance=dict\(type='synthaug_plugins\.MSE'\)")
    refused(ModelError, r"weights = 'absent\.pth' does not exist", weights='absent.pth')
    refused(ModelError, r"none of LPIPS network = 'alex': 'features\.0\.weight' has the shape .*alexnet", True, network='alex', weights=str(squeeze[0]))
    (tmp_path / 'text.pth').write_text('no weights')
    refused(ModelError, 'cannot be read', True, weights=str(tmp_path / 'text.pth'))
    torch.save([torch.zeros(1)], tmp_path / 'list.pth')
    refused(ModelError, 'cannot be read: it holds a list', True, weights=str(tmp_path / 'list.pth'))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'hub' / 'checkpoints' / 'vgg16-397923af.pth').write_text('half')
    refused(ModelError, 'is damaged')
    with pytest.raises(RecipeError, match="network = 'vgg19' is unknown"):
        DISTANCES.build({'type': 'LPIPS', 'network': 'vgg19'})
    monkeypatch.setitem(sys.modules, 'lpips', None)
    refused(MissingExtra, r'synthaug-plugins\[metrics\]')


def test_cosine_distances_see_features_and_have_gradients(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model('test_resnet', num_classes=2).state_dict(), tmp_path / 'weights.pth')
    images = [np.repeat((x[..., None] * 255 / 16).astype(np.uint8), 3, 2) for x in digits().images[:6]]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    for options in (
        {'type': 'ClipCosine', 'model': 'embedded:digits_clip'},
        {'type': 'TimmCosine', 'model': 'test_resnet', 'checkpoint': str(tmp_path / 'weights.pth')},
    ):
        distance = DISTANCES.build(options)
        distance.check((8, 8))
        distance.setup(torch.device('cpu'))
        a, b = x[:3].clone().requires_grad_(), x[3:]
        found = distance(a, b)
        assert found.shape == (3,)
        found.sum().backward()
        assert bool(a.grad.isfinite().all()) and bool((a.grad != 0).any())  # type: ignore[union-attr]
        assert distance(b, b).abs().max() < 1e-5
        torch.testing.assert_close(distance(b[:, :1], b[:, :1] + 0), torch.zeros(3), atol=1e-5, rtol=0)
        assert distance.identity()['type'] == options['type']
        if options['type'] == 'ClipCosine':
            vectors = distance.clip.encode_images(images)
            torch.testing.assert_close(found.detach(), 1 - (vectors[:3] * vectors[3:]).sum(1), atol=0.05, rtol=0)
