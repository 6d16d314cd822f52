"""`synthaug audit`: planted copies of training and of held-out images are found, whatever was done to them, and new images are left alone."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation_report import Elements

from conftest import Say, digits
from synthaug_plugins.evaluation.audit.audit import Audit, audit, learned
from synthaug_plugins.evaluation.audit.chance import Chance, at_least
from synthaug_plugins.evaluation.audit.comparison import LEAK, STORE, TEST, TRAIN, near_enough
from synthaug_plugins.evaluation.audit.looking import VIEWS, Seen, look
from synthaug_plugins.evaluation.audit.nearness import Placed, to_set, to_train
from synthaug_plugins.evaluation.audit.thumbnails import THUMBNAILS, audit_network
from synthaug_plugins.evaluation.metrics.sets import ImageSet
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Plan, Request, make_blocks, request_id
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.shard import Row
from synthaug_plugins.store.store import Store

NAMES = tuple('0123456789')
TRAIN_DIGITS, TEST_DIGITS, NEW_DIGITS = range(300), range(300, 500), range(1000, 1300)


def pixels(i: int) -> np.ndarray:
    return (digits().images[i] * 15.9).astype(np.uint8)[..., None].repeat(3, 2)


def encoded(image: np.ndarray, kind: str = 'PNG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(image, 'JPEG', quality=75))).convert('RGB'))


def larger(image: np.ndarray, factor: int = 2) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.BICUBIC))


SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'exact': lambda image: image,
    'resized': larger,
    'resized more': lambda image: larger(image, 3),
    'encoded anew': jpeg,
    'mirrored': lambda image: np.ascontiguousarray(image[:, ::-1]),
    'upside down': lambda image: np.ascontiguousarray(image[::-1]),
    'brighter': lambda image: np.clip(image * 1.1 + 5, 0, 255).astype(np.uint8),
    'mirrored, resized, encoded anew': lambda image: jpeg(larger(np.ascontiguousarray(image[:, ::-1]))),
}


def seen(images: Sequence[np.ndarray]) -> Seen:
    ids = list(map(str, range(len(images))))
    return look(ImageSet('images', ids, ids, lambda i: images[int(i)]), audit_network(THUMBNAILS), VIEWS, lambda n: None)


def make_store(folder: Path, images: Sequence[tuple[int, np.ndarray, str | None]], names: Sequence[str] = NAMES) -> Store:
    """A store of images (label, pixels, source), in their order within a class."""
    of_class = {label: [image for image in images if image[0] == label] for label in range(len(names))}
    blocks = make_blocks(tuple(names), {name: len(of_class[label]) for label, name in enumerate(names)}, {}, 64)
    store = Store.create(folder, Plan(tuple(names), blocks, {'a': 1}), {'recipe': {}, 'model': {'name': 'none'}})
    for block in blocks:
        rows = []
        for part in block.parts:
            for i in range(part.target):
                _, image, source = of_class[part.label][part.first + i]
                rows.append(Row(Request(request_id(part, i), part.label, part.class_name, i, source, None, {}), 'kept', None, 'png', encoded(image)))
        store.publish(block, rows, False)
    return store


def make_folder(root: Path, numbers: Sequence[int]) -> Path:
    for i in numbers:
        path = root / NAMES[digits().target[i]] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(i)))
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and held-out digits, a store of new digits, and one of new digits and of copies."""
    root = tmp_path_factory.mktemp('audit')
    make_folder(root / TRAIN, TRAIN_DIGITS)
    make_folder(root / TEST, TEST_DIGITS)
    new = [(int(digits().target[i]), pixels(i), None) for i in NEW_DIGITS]
    make_store(root / 'clean', new)
    make_store(root / 'copied', [*new[:100], *((label, image, source) for label, image, source, *_ in planted())])
    return root


def planted() -> list[tuple[int, np.ndarray, str | None, str, int, str]]:
    """Label, pixels, source, and of which set, which digit and how it was spoilt. Every spoiling has digits of its own, so that no two are copies of each other."""
    found = []
    for k, (how, spoil) in enumerate(SPOILT.items()):
        for kind, numbers in ((TRAIN, TRAIN_DIGITS), (TEST, TEST_DIGITS)):
            for i in numbers[k * 10 : k * 10 + 10]:
                label = int(digits().target[i])
                found.append((label, spoil(pixels(i)), f'{label}/{i}.png' if kind == TRAIN and how == 'exact' else None, kind, i, how))
    return found


@pytest.fixture(scope='module')
def clean(data: Path) -> Audit:
    return audit(data / 'clean', data / TRAIN, data / TEST, quiet=True)


@pytest.fixture(scope='module')
def copied(data: Path) -> Audit:
    return audit(data / 'copied', data / TRAIN, data / TEST, quiet=True)


def test_new_digits_raise_no_more_than_one_false_alarm_in_a_hundred(clean: Audit) -> None:
    for kind in (TRAIN, TEST, STORE):
        one = clean.comparisons[kind]
        assert one.found <= 0.01 * len(NEW_DIGITS) and not one.beyond_chance, kind
    assert not clean.contaminated and not clean.leaks.beyond_chance
    assert clean.memorisation.max() < 0.8 and clean.memorisation.min() >= 0


def test_every_planted_copy_is_found_with_what_it_is_a_copy_of(copied: Audit) -> None:
    pairs = {(pair.kind, pair.id): pair for kind in (TRAIN, TEST) for pair in copied.comparisons[kind].pairs}
    known = {name: iter([i for i, own in zip(copied.images.ids, copied.images.class_names, strict=True) if own == name]) for name in NAMES}
    for label in digits().target[list(NEW_DIGITS)[:100]]:
        next(known[NAMES[label]])
    for label, _, source, kind, i, how in planted():
        image_id = next(known[NAMES[label]])
        pair = pairs.get((kind, image_id))
        assert pair is not None, (how, kind, i)
        assert pair.other_id == f'{label}/{i}.png' and pair.class_name == pair.other_class_name == NAMES[label], (how, pair)
        assert pair.own_source == (source is not None)
        if how in ('exact', 'mirrored', 'upside down'):
            assert (pair.distance, pair.bits, pair.p) == (0, 0, 0)
        place = copied.images.ids.index(image_id)
        assert not copied.stays[place] and copied.reason(place) == f'copy of a {"training" if kind == TRAIN else "held-out"} image'
        assert (copied.memorisation[place] > 0.7) == (kind == TRAIN)
    assert len(pairs) <= len(planted()) + 0.01 * 100 * 2
    assert copied.contaminated and copied.comparisons[TRAIN].beyond_chance


def test_the_promise_holds_within_a_store_too() -> None:
    """One false alarm in 200 new digits, over splits at random; and of copies among those digits at most one in 50 is overlooked."""
    every, copied = (seen([change(pixels(i)) for i in range(n)]) for n, change in ((750, SPOILT['exact']), (60, larger)))
    rng, alarms, overlooked, splits = np.random.default_rng(0), {TRAIN: 0, TEST: 0, STORE: 0}, 0, 3
    for _ in range(splits):
        order = 60 + rng.permutation(690)
        stored = np.concatenate([np.arange(60), order[:240]])  # the first sixty are those that copies will be of
        origin = torch.from_numpy(every.features[0, order[240:540]]).double().mean(0)
        store, real, unseen, copies = (
            Placed(one, origin) for one in (*(Seen(every.features[:, p], every.hashes[:, p]) for p in (stored, order[240:540], order[540:])), copied)
        )
        chance = learned(real, 50)
        to_real, scales = to_train(store, real, 50)
        to_others = {TEST: (to_set(store, scales, unseen), len(unseen)), STORE: (to_set(store, scales, store, np.arange(300)), 299)}
        for kind, (nearest, others) in {TRAIN: (to_real, 300), **to_others}.items():
            alarms[kind] += int(near_enough(nearest, chance, others, 0.005)[0].sum())
        found = near_enough(to_set(copies, to_train(copies, real, 50)[1], store), chance, 300, 0.005)[0]
        overlooked += int((~found).sum())
    assert all(n <= 0.005 * 300 * splits for n in alarms.values()), alarms
    assert overlooked <= 0.02 * 60 * splits


def test_a_split_that_leaks_is_told_first_and_moves_no_threshold(data: Path, clean: Audit, tmp_path: Path, synthaug: Say) -> None:
    store, held_out = Path(shutil.copytree(data / 'clean', tmp_path / 'clean')), make_folder(tmp_path / 'test', range(300, 330))
    leaks = {i: SPOILT[how](pixels(i)) for i, how in ((3, 'exact'), (4, 'mirrored'), (5, 'mirrored, resized, encoded anew'))}
    for i, image in leaks.items():
        (held_out / NAMES[digits().target[i]] / f'leak{i}.png').write_bytes(encoded(image))
    said = synthaug('audit', store, '--train', data / TRAIN, '--test', held_out, '--out', tmp_path / 'out')
    assert said.status == 0, said.err  # the store is clean
    notes = [line for line in said.err.splitlines() if line.startswith('note: ')]
    assert notes[0].startswith('note: The split leaks: 3 of 33 held-out images look like copies of training images')
    found = json.loads((tmp_path / 'out' / 'audit.json').read_text())
    for kind in (TRAIN, STORE):
        was = clean.comparisons[kind]
        assert (found['comparisons'][kind]['within_distance'], found['comparisons'][kind]['copies']) == (was.distance, was.found)
    pairs = {pair['id']: pair['other_id'] for pair in found['leaks']['pairs']}
    assert pairs == {f'{digits().target[i]}/leak{i}.png': f'{digits().target[i]}/{i}.png' for i in leaks} and not found['contaminated']
    rows = list(csv.DictReader((tmp_path / 'out' / 'pairs.csv').open()))
    assert {row['id'] for row in rows if row['kind'] == LEAK} == set(pairs)
    html = (tmp_path / 'out' / 'report.html').read_text()
    assert html.index('The split leaks') < html.index('No image looks like') and 'Held-out images that are copies of a training image' in html


def test_photographs_too(shared: Path, tmp_path: Path) -> None:
    """EuroSAT, whose lakes and woods look alike; its real images are JPEG files."""
    with zipfile.ZipFile(shared / 'data' / 'eurosat' / 'train.zip') as pack:
        files = sorted(name for name in pack.namelist() if name.endswith('.jpg'))[::5]
        content = {name: pack.read(name) for name in files}
    train, test, new = files[::2], files[1::4], files[3::4]
    for part, chosen in ((TRAIN, train), (TEST, test)):
        for name in chosen:
            path = tmp_path / part / Path(name).parent.name / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[name])
    copies = [(name, how) for k, how in enumerate(SPOILT) for name in (*train[k * 9 : k * 9 + 5], *test[k * 9 : k * 9 + 5])]
    images = [np.asarray(Image.open(io.BytesIO(content[name])).convert('RGB')) for name in (*new, *(name for name, _ in copies))]
    spoilt = [SPOILT[how](image) for (_, how), image in zip(copies, images[len(new) :], strict=True)]
    make_store(tmp_path / 'store', [(0, image, None) for image in (*images[: len(new)], *spoilt)], ('land',))
    found = audit(tmp_path / 'store', tmp_path / TRAIN, tmp_path / TEST, quiet=True)
    either = found.comparisons[TRAIN].copies | found.comparisons[TEST].copies
    assert [copies[i] for i in np.flatnonzero(~either[len(new) :])] == []
    for kind in (TRAIN, TEST):
        assert found.comparisons[kind].copies[: len(new)].mean() <= 0.01 and found.comparisons[kind].beyond_chance


@pytest.fixture
def store(data: Path, tmp_path: Path) -> Path:
    """A store with copies that a test may write to."""
    return Path(shutil.copytree(data / 'copied', tmp_path / 'copied'))


def test_it_says_what_it_found_and_what_is_left_out_is_clean(data: Path, store: Path, tmp_path: Path, copied: Audit, synthaug: Say) -> None:
    real, out = ('--train', data / TRAIN, '--test', data / TEST), tmp_path / 'out'
    before = {p: p.read_bytes() for folder in ('shards', 'index') for p in (store / folder).iterdir()}
    said = synthaug('audit', store, *real, '--out', out, '--drop', 'clean')
    assert said.status == 5 and re.search(r'\d+ of 260 images in .* look like copies of held-out images.*clean_kept', said.err), said.err
    assert re.search(r'a held-out image +8\d +3\d\.\d +1\.3 +yes', said.out) and str(out / 'report.html') in said.out

    # Columns beside images that stay as they are.
    opened = Store.open(store)
    table = opened.index(['id', 'memorisation', 'train_p', 'test_p', 'store_p', 'clean_kept', 'clean_reason'])
    assert table['id'].to_pylist() == list(copied.images.ids)
    assert np.allclose(table['memorisation'].to_numpy(), copied.memorisation) and table['clean_kept'].to_pylist() == copied.stays.tolist()
    assert set(table['clean_reason'].to_pylist()) >= {None, 'copy of a training image', 'copy of a held-out image'}
    made_by = opened.scores_made_by('audit') or {}
    assert made_by['audit']['k'] == 50 and made_by['audit']['train_sha256'] == RealImages(data / TRAIN).content_hash()
    assert before == {p: p.read_bytes() for p in before}
    assert len(select(opened, 'memorisation < 0.7 and test_p > 0.005', allow_empty=True).table) < 120

    # The files.
    found = json.loads((out / 'audit.json').read_text())
    rows = list(csv.DictReader((out / 'pairs.csv').open()))
    assert found['contaminated'] is True and found['store']['stay'] == copied.stays.sum()
    assert len(rows) == sum(len(one.pairs) for one in copied.comparisons.values())
    assert [row['id'] for row in rows if row['kind'] == TEST] == [pair['id'] for pair in found['comparisons'][TEST]['pairs']]
    p = [float(row['p']) for row in rows if row['kind'] == TRAIN]
    assert p == sorted(p)  # the worst first
    counts = found['per_class']
    assert list(counts) == list(NAMES) and sum(one[TRAIN] for one in counts.values()) == copied.comparisons[TRAIN].found
    html = (out / 'report.html').read_text()
    page = Elements(html)
    assert not page.tags & {'script', 'iframe', 'form'} and not re.search(r'url\(|@import|https?:', html)
    assert html.count('<img ') == 2 * html.count('class="card"') and found['command'] in html and 'mirrored' in html
    assert html.index('Copies of a training image') < html.index(rows[0]['other_id'])

    # What was left out is out.
    again = synthaug('audit', store, *real, '--where', 'clean_kept', '--out', out)
    assert again.status == 0, again.err
    assert re.search(r'a held-out image +0 ', again.out) and 'clean_kept' in json.loads((out / 'audit.json').read_text())['store']['selection']
    assert Store.open(store).index(['memorisation'])['memorisation'].null_count == (~copied.stays).sum()


def test_a_network_sees_them_too(data: Path, store: Path, tmp_path: Path, synthaug: Say) -> None:
    real = '--train', make_folder(tmp_path / 'train', range(40)), '--test', make_folder(tmp_path / 'test', range(300, 310))
    said = synthaug('audit', store, *real, '--features', 'embedded:digits_clip', '--where', "class in ('0', '1')")
    assert said.status == 5 and 'Features: embedded:digits_clip' in said.out and 'over the mean of those to the 39 nearest' in said.out
    assert 'note: 40 training images cannot support 0.5 % false alarms' in said.err


# --- within a store


def test_of_images_that_are_copies_of_each_other_one_stays(data: Path, tmp_path: Path) -> None:
    """Seventy copies of one image, more than the local scale has neighbours, and pairs of others."""
    new = [(int(digits().target[i]), pixels(i), None) for i in range(1000, 1040)]
    label, image, _ = new[0]
    many = [(label, SPOILT[how](image), None) for how in ('exact', 'resized', 'mirrored', 'encoded anew') for _ in range(18)]
    twice = [(other, jpeg(larger(copy)), None) for other, copy, _ in new[1:6]]
    make_store(tmp_path / 'store', [*new, *many, *twice])
    found = audit(tmp_path / 'store', data / TRAIN, data / TEST, quiet=True)
    assert found.comparisons[STORE].found == 1 + len(many) + 2 * len(twice)
    assert found.stays.sum() == len(new) and found.stays[found.images.ids.index('00000_000000')] == (label != 0)
    assert {found.reason(i) for i in np.flatnonzero(~found.stays)} == {'copy of another image of the store'}
    assert not found.contaminated
    pairs = found.comparisons[STORE].pairs
    assert len({frozenset((pair.id, pair.other_id)) for pair in pairs}) == len(pairs)


# --- chance


def test_below_what_was_measured_chance_falls_like_the_volume_of_a_ball() -> None:
    """Distances of an exact power law; and with copies among the training images, which must not make copies look common."""
    rng = np.random.default_rng(0)
    distances = rng.random(4000) ** (1 / 8)  # P(l) = l^8
    chance = Chance(np.sort(distances), np.full(4000, 20), 4000)
    assert chance.of_distances(np.array([0.3]), 4000)[0] == pytest.approx(0.3**8, rel=1)
    assert chance.of_distances(np.array([0.8]), 4000)[0] == pytest.approx(0.8**8, rel=0.1)
    assert chance.distance_at(1e-6, 4000) == pytest.approx(1e-6 ** (1 / 8), rel=0.15)
    spoilt = Chance(np.sort(np.append(distances, np.full(20, 1e-4))), np.full(4020, 20), 4020)
    assert 0.6 * 1e-6 ** (1 / 8) < spoilt.distance_at(1e-6, 4000) < chance.distance_at(1e-6, 4000)  # with fewer alarms, if anything
    many, few = (chance.distance_at(0.001, n) for n in (40_000, 400))
    assert many < chance.distance_at(0.001, 4000) < few  # so many more chances to be near
    assert chance.of_distances(np.array([0.0]), 10**9)[0] == 0  # an exact copy is none


def test_thresholds_give_the_share_of_false_alarms_that_is_asked_for() -> None:
    rng = np.random.default_rng(1)
    distances, bits = np.sort(rng.beta(9, 3, 3000)), np.sort(2 * rng.binomial(16, 0.35, 3000))
    chance = Chance(distances, bits, 3000)
    for share in (0.05, 0.002):
        assert share / 8 < (rng.beta(9, 3, 200_000) <= chance.distance_at(share, 3000)).mean() < 1.25 * share
        assert (2 * rng.binomial(16, 0.35, 200_000) <= chance.bits_at(share, 3000)).mean() <= 1.5 * share


@pytest.mark.parametrize('n', [20, 60, 300])
def test_few_images_make_chance_cautious(n: int) -> None:
    """Distances of an exact power law, whose share within a distance is known: at most one in 20 is unlucky with the images it learns from, however few."""
    rng, shares = np.random.default_rng(2), []
    for _ in range(400):
        chance = Chance(np.sort(rng.random(n) ** (1 / 8)), np.full(n, 20), n)
        shares.append(max(chance.distance_at(0.0025, n), 0) ** 8)
    assert np.mean(np.array(shares) > 0.0025) < 0.05 and np.mean(shares) < 0.0025 and np.median(shares) > 0


def test_where_everything_is_alike_nothing_is_called_a_copy() -> None:
    chance = Chance(np.zeros(100), np.zeros(100, int), 99)
    assert (chance.distance_at(0.01, 50), chance.bits_at(0.01, 50)) == (-1, -1)
    assert chance.of_distances(np.array([0.0]), 99)[0] == chance.of_bits(np.array([0]), 99)[0] == 1
    few = Chance(np.linspace(0.5, 1, 20), np.full(20, 30), 19)
    assert 0 < few.distance_at(0.0025, 19) < 0.5 and few.bits_at(0.0025, 19) < 30


def test_poisson_tails() -> None:
    assert at_least(0, 2.5) == 1 and at_least(1, 0.1) == pytest.approx(1 - np.exp(-0.1)) and at_least(30, 2.5) < 1e-12


# --- refusals


def test_bad_input_is_refused_before_an_image_is_read(data: Path, store: Path, tmp_path: Path, synthaug: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('synthaug_plugins.evaluation.metrics.sets.ImageSet.images', lambda *a: pytest.fail('images were read'))
    few, photos = make_folder(tmp_path / 'few', range(12)), tmp_path / 'photos'
    photos.mkdir()
    (photos / 'a.jpg').touch()
    Store.open(store).add_scores('mine', select(Store.open(store), columns=['id']).table.append_column('score', [[0.5] * 260]))
    real = ('--train', data / TRAIN, '--test', data / TEST)
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((data / TRAIN, *real), 'store'),
        ((store, '--train', data / 'nowhere', '--test', data / TEST), 'does not exist'),
        ((store, '--train', data / TRAIN, '--test', data / TRAIN), 'Hold out other images than --train'),
        ((store, '--train', few, '--test', data / TEST), 'holds 12 images.*Give 20 and more'),
        ((store, *real, '--features', 'dino'), "'dino' names no feature network"),
        ((store, *real, '--false-alarms', 0.5), '--false-alarms 0.5 is no share'),
        ((store, *real, '--where', 'clip_p > 1'), "no 'clip_p' in the store"),
        ((store, *real, '--drop', 'audit'), 'Give another name: --drop clean'),
        ((store, *real, '--drop', '../x'), 'cannot begin the name of a column'),
        ((store, *real, '--drop', 'mine'), "has scores 'mine' that no audit made"),
        ((store, *real, '--out', photos), "not a folder of an audit: it holds 'a.jpg'"),
        ((store, *real, '--out', data / TRAIN / 'out'), 'would become a class'),
        ((store, *real, '--device', 'abacus'), '--device abacus'),
    ]
    for arguments, said in wrong:
        refused = synthaug('audit', *arguments)
        assert refused.status == 2 and re.search(said, refused.err), (arguments, refused.err)


def test_stopped_it_has_written_nothing(data: Path, store: Path, tmp_path: Path, synthaug: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr('synthaug_plugins.evaluation.audit.audit.look', stop)
    said = synthaug('audit', store, '--train', data / TRAIN, '--test', data / TEST, '--out', tmp_path / 'out', '--drop', 'clean')
    assert said.status == 130 and 'nothing was written' in said.err
    assert not (tmp_path / 'out').exists() and Store.open(store).score_files() == []


def test_what_a_store_says_is_text_in_the_page(data: Path, tmp_path: Path, synthaug: Say) -> None:
    hostile = '<script>alert(1)'
    rows = [(0, pixels(i), None) for i in range(5)]
    make_store(tmp_path / 'store', rows, (hostile,))
    said = synthaug('audit', tmp_path / 'store', '--train', data / TRAIN, '--test', data / TEST, '--out', tmp_path / 'out')
    assert said.status == 0, said.err
    html = (tmp_path / 'out' / 'report.html').read_text()
    assert '<script' not in html and '&lt;script&gt;alert(1)' in html
