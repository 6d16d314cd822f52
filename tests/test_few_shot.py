"""The shots are a seed's or a file's, never repeated and never among the images that choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.few_shot import copy_shots, draw_shots, long_tail_counts, read_split

IDS = {'cat': [f'cat/{i}.png' for i in range(20)], 'dog': [f'dog/{i}.png' for i in range(24)]}


def test_fewer_shots_are_part_of_more_and_another_seed_draws_others() -> None:
    drawn = {k: draw_shots(IDS, k, 1).train for k in (1, 2, 4, 8, 16)}
    for small, large in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert all(drawn[large][name][:small] == drawn[small][name] for name in IDS)
    assert draw_shots(IDS, 4, 2).train != drawn[4]
    assert all(len(set(ids)) == 16 for ids in drawn[16].values())


def test_a_draw_is_the_same_on_every_machine() -> None:
    assert draw_shots(IDS, 2, 1).train == {'cat': ('cat/15.png', 'cat/7.png'), 'dog': ('dog/5.png', 'dog/6.png')}


@pytest.mark.parametrize('shots', [1, 2, 4, 8, 16])
def test_validation_images_are_none_of_the_shots_and_as_many_as_coop_has(shots: int) -> None:
    drawn = draw_shots(IDS, shots, 3)
    for name in IDS:
        assert not set(drawn.train[name]) & set(drawn.val[name])
        assert len(drawn.val[name]) == min(shots, 4)


def test_a_class_with_too_few_images_is_named_and_none_is_repeated() -> None:
    with pytest.raises(DataError, match="'cat' has 20 images, too few for 21 shots"):
        draw_shots(IDS, 21, 1)
    with pytest.raises(DataError, match="'cat' has 20 images, too few for 16 shots and 5 validation images"):
        draw_shots(IDS, 16, 1, val_shots=5)
    assert [len(draw_shots(IDS, 18, 1).val[name]) for name in IDS] == [2, 4]  # spared where they can be


@pytest.mark.parametrize(('name', 'value'), [('shots', 0), ('shots', True), ('shots', 2.0), ('seed', -1), ('val_shots', -1)])
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f'{name} = {value!r} is out of range'):
        draw_shots(IDS, **{'shots': 1, 'seed': 1, name: value})


def test_a_long_tail_falls_off_exponentially_to_the_asked_ratio() -> None:
    classes = [f'c{i}' for i in range(10)]
    # CIFAR-10-LT of ratio 100 as it is commonly listed, with halves rounded up in place of cut off
    assert list(long_tail_counts(classes, 5000, 100).values()) == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
    assert list(long_tail_counts(classes, 7, 1).values()) == [7] * 10
    assert list(long_tail_counts(classes, 4, 1000).values())[-4:] == [1] * 4  # no class is left without an image


@pytest.mark.parametrize(
    ('classes', 'most', 'ratio', 'says'), [('ab', 0, 2, 'shots of the largest class = 0'), ('ab', 5, 0.5, 'imbalance = 0.5'), ('a', 5, 2, 'has no tail')]
)
def test_a_long_tail_that_cannot_be_is_refused(classes: str, most: int, ratio: float, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        long_tail_counts(list(classes), most, ratio)


def test_shots_of_a_long_tail_are_the_first_of_the_balanced_draw() -> None:
    balanced, drawn = draw_shots(IDS, 8, 1), draw_shots(IDS, {'dog': 2, 'cat': 8}, 1)
    assert drawn.train == {'cat': balanced.train['cat'], 'dog': balanced.train['dog'][:2]}
    assert [len(drawn.val[name]) for name in IDS] == [4, 2]
    with pytest.raises(RecipeError, match=r"numbers for 1 classes, and there are 2: \['dog'\] differ"):
        draw_shots(IDS, {'cat': 1}, 1)
    with pytest.raises(RecipeError, match="shots of 'dog' = 0 is out of range"):
        draw_shots(IDS, {'cat': 1, 'dog': 0}, 1)
    with pytest.raises(DataError, match="'cat' has 20 images, too few for 21 shots"):
        draw_shots(IDS, {'cat': 21, 'dog': 1}, 1)


def test_split_files_of_both_kinds_are_read_in_their_order(tmp_path: Path) -> None:
    (tmp_path / 's.json').write_text(json.dumps({'train': [['dog/3.png', 1, 'a dog'], ['cat/2.png', 0, 'a cat']], 'val': [['dog/4.png', 1, 'a dog']]}))
    (tmp_path / 's.txt').write_text('dog/3.png\n\ncat/2.png\n')
    expected = {'cat': ('cat/2.png',), 'dog': ('dog/3.png',)}
    assert read_split(tmp_path / 's.json', 'train', IDS) == read_split(tmp_path / 's.txt', 'train', IDS) == expected
    assert read_split(tmp_path / 's.json', 'val', IDS) == {'cat': (), 'dog': ('dog/4.png',)}


@pytest.mark.parametrize(
    ('name', 'text', 'said'),
    [
        ('s.txt', 'dog/3.png\ndog/99.png\nbird/1.png\n', "names 2 files that are not in the data folder: 'dog/99.png', 'bird/1.png'"),
        ('s.txt', 'dog/3.png\ndog/3.png\n', "names 'dog/3.png' twice"),
        ('s.json', '{"test": []}', "has no list 'train'"),
        ('s.json', '{"train": [1]}', "has no list 'train' of rows"),
        ('s.json', 'train', 'cannot be read'),
        ('s.pkl', 'x', r'is no \.json or \.txt'),
        ('missing.txt', None, 'cannot be read'),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_split(tmp_path / name, 'train', IDS)


def test_copied_shots_are_those_of_the_draw_under_their_own_ids(tmp_path: Path, synthaug: Any) -> None:
    for image_id in (i for ids in IDS.values() for i in ids):
        (tmp_path / 'train' / image_id).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'train' / image_id).write_bytes(image_id.encode())
    out = tmp_path / 'out'
    done = synthaug('shots', tmp_path / 'train', '--shots', 4, '--seed', 2, '--out', out)
    assert done.status == 0, done.err
    drawn = draw_shots(IDS, 4, 2).train
    assert {p.relative_to(out).as_posix() for p in out.rglob('*.png')} == {i for ids in drawn.values() for i in ids}
    assert all(p.read_bytes() == p.relative_to(out).as_posix().encode() for p in out.rglob('*.png'))
    tail = synthaug('shots', tmp_path / 'train', '--shots', 8, '--imbalance', 4, '--out', tmp_path / 'tail')
    assert tail.status == 0 and 'cat 8, dog 2' in tail.out
    assert [len(list((tmp_path / 'tail' / name).iterdir())) for name in IDS] == [8, 2]
    again = synthaug('shots', tmp_path / 'train', '--shots', 4, '--out', out)
    assert again.status == 2
    assert 'is not empty' in again.err
    many = synthaug('shots', tmp_path / 'train', '--shots', 21, '--out', tmp_path / 'many')
    assert many.status == 2
    assert "'cat' has 20 images, too few for 21 shots" in many.err
    assert not (tmp_path / 'many').exists()


def test_shots_are_never_copied_into_the_folder_that_they_come_from(tmp_path: Path) -> None:
    (tmp_path / 'cat').mkdir()
    (tmp_path / 'cat' / '1.png').write_bytes(b'')
    with pytest.raises(RecipeError, match='would become a class'):
        copy_shots(tmp_path, {'cat': ['cat/1.png']}, tmp_path / 'shots')
    assert [p.name for p in tmp_path.iterdir()] == ['cat']


def test_a_shot_that_cannot_be_read_is_named_and_not_the_folder_of_the_copies(tmp_path: Path) -> None:
    (tmp_path / 'train' / 'cat').mkdir(parents=True)
    with pytest.raises(DataError, match=r"The image '.*cat/1.png' cannot be read"):
        copy_shots(tmp_path / 'train', {'cat': ['cat/1.png']}, tmp_path / 'shots')
    assert [p.name for p in tmp_path.iterdir()] == ['train']
