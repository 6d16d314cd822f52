"""Near-duplicates are found whatever the batches, within their block and class or among the real images, and nothing else is rejected."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from synthaug_plugins.curation import duplicates
from synthaug_plugins.curation.duplicates import BITS, NearDuplicates, hamming, phash
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Request

CPU = torch.device('cpu')
CLASSES = ('a', 'b')


def photo(seed: int, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """Smooth blobs: what a photograph is to a perceptual hash."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1)))


def jpeg(image: np.ndarray, quality: int = 60) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file))


def requests(labels: list[int]) -> list[Request]:
    return [Request(f'00000_{i:06d}', label, CLASSES[label], i) for i, label in enumerate(labels)]


def ready(real: RealImages | None = None, **options: object) -> NearDuplicates:
    inspector = NearDuplicates(**options)
    inspector.check(CLASSES, real)
    inspector.setup(CPU, CLASSES, real)
    return inspector


def bits(code: np.uint64) -> np.ndarray:
    return np.unpackbits(np.array([code], '>u8').view(np.uint8))


def test_hash_is_the_sign_of_the_low_dct_against_its_median() -> None:
    """Against SciPy's DCT, and bit by bit."""
    scipy_fft = pytest.importorskip('scipy.fft')
    for seed in range(5):
        image = photo(seed)
        grey = np.asarray(Image.fromarray(image).convert('L').resize((32, 32), Image.Resampling.LANCZOS), float)
        low = scipy_fft.dctn(grey, type=2, norm=None)[:8, :8]
        assert bits(phash(image)).tolist() == (low > np.median(low)).ravel().astype(int).tolist()


def test_hashes_of_flipped_images_are_those_of_the_images_flipped() -> None:
    for seed in range(5):
        image = photo(seed)
        flipped = [image, np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(image[::-1])]
        assert duplicates.flipped_phashes(image).tolist() == [phash(one) for one in flipped]


def test_copies_are_near_and_other_images_are_far() -> None:
    codes = np.array([phash(photo(seed)) for seed in range(60)])
    changed = [jpeg(photo(0)), np.asarray(Image.fromarray(photo(0)).resize((50, 41))), (photo(0) * 0.8).astype(np.uint8), photo(0)[1:-1, 1:-1]]
    assert all(hamming(codes[:1], np.array([phash(c)]))[0, 0] <= 4 for c in changed)
    others = hamming(codes, codes)[np.triu_indices(60, 1)]
    assert others.min() > 8
    assert 24 < others.mean() < 40


def test_flat_images_are_duplicates_of_each_other() -> None:
    codes = np.array([phash(np.full((h, h, 3), grey, np.uint8)) for h, grey in ((8, 0), (9, 77), (64, 128), (31, 255))])
    assert hamming(codes, codes).max() <= 1


@pytest.mark.parametrize('old_numpy', [False, True])
def test_hamming_counts_bits(old_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old_numpy:
        monkeypatch.delattr(np, 'bitwise_count', raising=False)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (7, 11))
    assert hamming(a, b).tolist() == [[(int(x) ^ int(y)).bit_count() for y in b] for x in a]
    assert hamming(a, b[:0]).shape == (7, 0)
    assert hamming(np.array([0], np.uint64), np.array([2**64 - 1], np.uint64))[0, 0] == 64


def test_a_copy_of_an_earlier_image_of_its_class_is_rejected() -> None:
    inspector = ready()
    verdicts = inspector.inspect(requests([0, 0, 0, 1]), [photo(0), photo(1), jpeg(photo(0)), photo(0)])
    assert [r is None for r in verdicts.reasons] == [True, True, False, True]
    assert verdicts.scores['phash_distance'][0] == verdicts.scores['phash_distance'][3] == BITS
    assert 0 <= verdicts.scores['phash_distance'][2] <= 4
    assert str(verdicts.reasons[2]).startswith('near-duplicate (')
    later = inspector.inspect(requests([1, 0]), [jpeg(photo(0)), jpeg(photo(1))])
    assert None not in later.reasons
    inspector.begin_block()
    assert inspector.inspect(requests([0]), [photo(0)]).reasons == [None]


def test_a_rejected_copy_hides_no_image_of_its_own() -> None:
    """A chain of ever farther images: each is compared with those that passed, and those differ by more than the distance."""
    first, last = photo(0).astype(float), photo(1).astype(float)
    chain = [((1 - t) * first + t * last).astype(np.uint8) for t in np.linspace(0, 1, 40)]
    verdicts = ready(distance=6).inspect(requests([0] * 40), chain)
    codes = np.array([phash(image) for image in chain])
    passed = [i for i, reason in enumerate(verdicts.reasons) if reason is None]
    assert 2 < len(passed) < 30
    assert hamming(codes[passed], codes[passed])[np.triu_indices(len(passed), 1)].min() > 6
    for i, distance in enumerate(verdicts.scores['phash_distance']):
        before = [k for k in passed if k < i]
        assert distance == min((int(hamming(codes[i : i + 1], codes[k : k + 1])[0, 0]) for k in before), default=BITS)


@pytest.mark.parametrize('batch', [1, 3, 7, 40])
def test_verdicts_do_not_depend_on_batches(batch: int) -> None:
    images = [photo(seed % 9) if seed % 2 else jpeg(photo(seed % 9), 30 + seed) for seed in range(40)]
    labels = [seed % 2 for seed in range(40)]
    whole = ready().inspect(requests(labels), images)
    inspector, reasons, distances = ready(), [], []
    for i in range(0, 40, batch):
        part = inspector.inspect(requests(labels)[i : i + batch], images[i : i + batch])
        reasons += part.reasons
        distances += part.scores['phash_distance'].tolist()
    assert reasons == list(whole.reasons)
    assert distances == whole.scores['phash_distance'].tolist()
    assert any(reasons)


def test_copies_of_real_images_of_any_class_are_rejected(tmp_path: Path) -> None:
    for name, seed in (('a', 0), ('b', 1)):
        (tmp_path / name).mkdir()
        Image.fromarray(photo(seed)).save(tmp_path / name / '0.png')
    with pytest.raises(RecipeError, match='--data'):
        prepare(complete({'generator': {'type': 'EDM', 'model': 'embedded:digits_edm'}, 'inspectors': [{'type': 'NearDuplicates', 'against': 'real'}]}))
    inspector = ready(RealImages(tmp_path), against='real')
    verdicts = inspector.inspect(requests([0, 0, 0, 0]), [photo(2), photo(2), jpeg(photo(0)), jpeg(photo(1))])
    assert [r is None for r in verdicts.reasons] == [True, True, False, False]
    assert 'a real image' in str(verdicts.reasons[3])
    assert verdicts.scores['phash_real_distance'][0] > 4


def test_many_hashes_are_searched_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are stood in for: what is tested is the search. A table of all pairs would take 3.2 GB."""
    import tracemalloc

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    codes[-1] = codes[2] ^ np.uint64(5)
    endless = iter(codes)
    monkeypatch.setattr(duplicates, 'phash', lambda image: next(endless))
    inspector, image = ready(), np.zeros((1, 1, 3), np.uint8)
    tracemalloc.start()
    reasons = [reason for _ in range(20) for reason in inspector.inspect(requests([0] * 1000), [image] * 1000).reasons]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons[-1] == 'near-duplicate (2 bits from an earlier one)'
    assert reasons.count(None) == 19_999
    assert peak < 100e6


@pytest.mark.parametrize('options', [{'distance': -1}, {'distance': 64}, {'distance': 2.5}, {'distance': True}, {'against': 'store'}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match='NearDuplicates'):
        NearDuplicates(**options)


def test_a_block_that_is_redone_is_judged_alike(tmp_path: Path) -> None:
    recipe = complete(
        {'generator': {'type': 'EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2}}, 'classes': ['three', 'five'], 'per_class': 12}
        | {'block_size': 6, 'batch_size': 4, 'inspectors': [{'type': 'NearDuplicates', 'distance': 26}], 'tries_per_image': 10}
    )
    store = generate(recipe, tmp_path / 's', 'cpu', quiet=True)
    before = store.index().to_pylist()
    assert any(r['verdict'] == 'rejected' for r in before)
    assert all((r['verdict'] == 'kept') == (r['phash_distance'] > 26) for r in before)
    for name in ('00001', '00002'):
        (tmp_path / 's' / 'index' / f'{name}.parquet').unlink()
        (tmp_path / 's' / 'shards' / f'{name}.tar').unlink()
    assert generate(recipe, tmp_path / 's', 'cpu', quiet=True).index().to_pylist() == before
