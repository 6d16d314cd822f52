"""The encoder sees the same pixels once, and never lends one model's features to another."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.feature_cache import FeatureCache
from synthaug_plugins.errors import DataError, ModelError, RecipeError, StoreError

CPU = torch.device('cpu')
MODEL = 'embedded:digits_clip'


def pixels(seed: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = 'png') -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind)
    return data.getvalue()


def named(*contents: Any) -> list[tuple[str, Any]]:
    return [(f'{i}', content) for i, content in enumerate(contents)]


@pytest.fixture(scope='module')
def clip() -> ClipModel:
    made = ClipModel(MODEL)
    made.load(CPU)
    return made


@pytest.fixture
def cache(clip: ClipModel, tmp_path: Path) -> FeatureCache:
    return FeatureCache(clip, tmp_path)


def test_features_are_those_of_the_model_in_the_order_of_the_images(clip: ClipModel, cache: FeatureCache) -> None:
    images = [pixels(i, (24 + i, 40 - i)) for i in range(5)]
    found = cache.features(named(*map(encoded, images)), CPU)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, clip.encode_images(images).numpy(), atol=1e-6)


def test_equal_pixels_are_encoded_once_whatever_file_they_come_in(cache: FeatureCache) -> None:
    a, b = pixels(1), pixels(2)
    cache.features(named(encoded(a), encoded(a, 'bmp'), a, encoded(a)), CPU)
    assert cache.encoded == 1
    found = cache.features(named(encoded(b, 'bmp'), encoded(a, 'tiff'), b), CPU)
    assert cache.encoded == 2
    assert (found[0] == found[2]).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_second_process_reads_what_the_first_encoded_to_the_bit(clip: ClipModel, cache: FeatureCache, tmp_path: Path) -> None:
    contents = named(*(encoded(pixels(i)) for i in range(4)))
    first = cache.features(contents, CPU)
    again = FeatureCache(clip, tmp_path)
    assert len(again) == 4
    assert (again.features(contents, CPU) == first).all()
    assert again.encoded == 0


def test_what_was_encoded_before_a_kill_is_kept(clip: ClipModel, cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCache, 'part_size', 3)
    contents = named(*(encoded(pixels(i)) for i in range(5)))

    def killed_at_the_fourth() -> Any:
        yield from contents[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.features(killed_at_the_fourth(), CPU)
    again = FeatureCache(clip, tmp_path)
    again.features(contents, CPU)
    assert again.encoded == 2
    assert not list(tmp_path.rglob('.partial*'))


def test_two_models_and_two_preparations_share_nothing(clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ClipModel(MODEL)
    monkeypatch.setattr(type(other), 'identity', lambda self: {'name': 'digits_clip', 'sha256': 'f' * 64 if self is other else '0' * 64})
    caches = [FeatureCache(clip, tmp_path), FeatureCache(other, tmp_path), FeatureCache(clip, tmp_path, native_px=8)]
    assert len({c.path for c in caches}) == 3


def test_a_file_that_another_model_made_is_refused(clip: ClipModel, cache: FeatureCache, tmp_path: Path) -> None:
    small = FeatureCache(clip, tmp_path, native_px=8)
    small.features(named(encoded(pixels(0))), CPU)
    cache.path.mkdir(parents=True)
    for file in small.path.iterdir():
        file.rename(cache.path / file.name)
    with pytest.raises(ModelError, match=r'made by another model .*Remove the file'):
        FeatureCache(clip, tmp_path)


@pytest.mark.parametrize('damage', ['cut', 'text', 'empty'])
def test_a_damaged_file_is_named(clip: ClipModel, cache: FeatureCache, tmp_path: Path, damage: str) -> None:
    cache.features(named(encoded(pixels(0))), CPU)
    (file,) = cache.path.iterdir()
    data = file.read_bytes()
    file.write_bytes({'cut': data[:-40], 'text': b'hello', 'empty': b''}[damage])
    with pytest.raises(ModelError, match=rf'{file.name}.* is damaged'):
        FeatureCache(clip, tmp_path)


def test_native_px_makes_larger_images_as_small_as_the_data_set_and_leaves_small_ones(clip: ClipModel, tmp_path: Path) -> None:
    large, small = np.kron(pixels(3, (8, 12)), np.ones((4, 4, 1), np.uint8)), pixels(3, (8, 12))
    cache = FeatureCache(clip, tmp_path, native_px=8)
    found = cache.features(named(encoded(large), encoded(small)), CPU)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    plain = FeatureCache(clip, tmp_path).features(named(encoded(large)), CPU)
    assert np.abs(plain - found[0]).max() > 1e-3


def test_an_image_that_cannot_be_read_is_named_and_nothing_of_it_is_kept(cache: FeatureCache) -> None:
    with pytest.raises(DataError, match=r"'broken\.png' cannot be read"):
        cache.features([('fine.png', encoded(pixels(0))), ('broken.png', b'no image')], CPU)
    assert len(cache) == 0


@pytest.mark.parametrize('native_px', [0, 2.5, True])
def test_a_size_that_is_none_is_refused(clip: ClipModel, tmp_path: Path, native_px: Any) -> None:
    with pytest.raises(RecipeError, match='is no number of pixels'):
        FeatureCache(clip, tmp_path, native_px=native_px)


def test_few_images_are_decoded_at_a_time_and_many_share_a_file(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCache, 'read_size', 2)
    sizes: list[int] = []
    encode = ClipModel.encode_images
    monkeypatch.setattr(ClipModel, 'encode_images', lambda self, images: sizes.append(len(images)) or encode(self, images))
    contents = named(*(encoded(pixels(i)) for i in (0, 1, 0, 2, 3)))
    found = cache.features(contents, CPU)
    assert sizes == [2, 1, 1]
    assert len(list(cache.path.iterdir())) == 1
    np.testing.assert_array_equal(found, FeatureCache(cache.clip, cache.path.parent).features(contents, CPU))


def test_a_cache_that_cannot_be_written_is_refused_before_the_network_runs(clip: ClipModel, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    cache = FeatureCache(clip, tmp_path / 'file')
    with pytest.raises(StoreError, match='cannot be written'):
        cache.features(named(encoded(pixels(0))), CPU)
    assert cache.encoded == 0
