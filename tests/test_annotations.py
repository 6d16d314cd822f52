"""An image gets the class and the mask of its largest instance, from VOC and from COCO; what does not fit is named."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthaug_plugins.annotations.coco import COCO
from synthaug_plugins.annotations.importing import import_images
from synthaug_plugins.annotations.segmentation import runs_of_text
from synthaug_plugins.annotations.voc import VOC, VOC_CLASSES, voc_colour
from synthaug_plugins.errors import DataError
from synthaug_plugins.real_images import RealImages

PALETTE = [c for k in range(256) for c in voc_colour(k)]
CAT, DOG = VOC_CLASSES.index('cat') + 1, VOC_CLASSES.index('dog') + 1
H, W = 12, 16


def png(path: Path, indices: np.ndarray, palette: list[int] = PALETTE) -> None:
    image = Image.fromarray(indices.astype(np.uint8), 'P')
    image.putpalette(palette)
    image.save(path)


def voc_image(root: Path, id: str, objects: np.ndarray, classes: np.ndarray, names: list[str] | None = None) -> None:
    """An image of random pixels with its two masks, and an XML file that names objects."""
    Image.fromarray(np.random.default_rng(len(id)).integers(0, 255, (H, W, 3), np.uint8)).save(root / 'JPEGImages' / f'{id}.jpg')
    png(root / 'SegmentationObject' / f'{id}.png', objects)
    png(root / 'SegmentationClass' / f'{id}.png', classes)
    if names is not None:
        listed = ''.join(f'<object><name>{n}</name><part><name>head</name></part></object>' for n in names)
        (root / 'Annotations' / f'{id}.xml').write_text(f'<annotation>{listed}</annotation>')


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """a: a dog (30 pixels) beside a cat (12), no void; b: the same with void of 100 pixels; c: nothing but void; d: a tiny dog."""
    root = tmp_path / 'VOC2012'
    for folder in ('JPEGImages', 'SegmentationObject', 'SegmentationClass', 'Annotations', 'ImageSets/Segmentation', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    objects, classes = np.zeros((H, W)), np.zeros((H, W))
    objects[:5, :6], classes[:5, :6] = 2, DOG
    objects[:4, 8:11], classes[:4, 8:11] = 1, CAT
    voc_image(root, 'a', objects, classes, ['cat', 'dog'])
    objects[6:, :], classes[6:, :] = 255, 255
    voc_image(root, 'b', objects, classes)
    voc_image(root, 'c', np.where(objects == 255, 255, 0), np.where(classes == 255, 255, 0))
    small = np.zeros((H, W))
    small[3, 3] = 1
    voc_image(root, 'd', small, small * DOG, ['person'])
    (root / 'ImageSets/Segmentation/train.txt').write_text('a\nb\nc\nd\n')
    (root / 'ImageSets/Main/dog_train.txt').write_text('a  1\nb -1\n')
    (root / 'ImageSets/Main/one.txt').write_text('a\n')
    return root


def test_voc_takes_the_largest_instance_with_and_without_a_void_border(voc: Path) -> None:
    """The published code drops the largest instance where an image has no void region."""
    reader = VOC(voc, 'train')
    for id in ('a', 'b'):
        found: Any = reader.read(id)
        assert (found.class_name, found.mask.sum()) == ('dog', 30)
        assert found.mask[:5, :6].all()


def test_import_writes_class_folders_that_the_rest_of_the_package_reads(voc: Path, tmp_path: Path, synthaug: Any) -> None:
    out = tmp_path / 'out'
    done = synthaug('import', 'voc', voc, '--out', out, '--min-area', 0.01)
    assert done.status == 0, done.err
    assert '2 images of 1 classes; 1 left out without an instance; 1 left out whose largest instance is below min_area' in done.out
    assert RealImages(out / 'images').ids('dog') == ('dog/a.jpg', 'dog/b.jpg')
    mask = Image.open(out / 'masks/dog/a.png')
    assert (mask.mode, mask.size) == ('L', (W, H))
    assert np.unique(np.asarray(mask), return_counts=True)[1].tolist() == [H * W - 30, 30]
    assert (out / 'images/dog/a.jpg').read_bytes() == (voc / 'JPEGImages/a.jpg').read_bytes()
    card = json.loads((out / 'import.json').read_text())
    assert card['counts'] == {'dog': 2}
    assert card['left_out'] == {'without an instance': ['c'], 'whose largest instance is below min_area': ['d']}
    assert (card['format'], card['split'], card['min_area']) == ('voc', 'train', 0.01)


def test_an_image_whose_xml_names_another_class_is_said(voc: Path, tmp_path: Path, synthaug: Any) -> None:
    done = synthaug('import', 'voc', voc, '--out', tmp_path / 'out')
    assert "1 whose XML names no object of their class (first 'd')" in done.out


def test_linked_images_take_no_space_and_a_link_that_fails_leaves_nothing(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_images(VOC(voc, 'train'), tmp_path / 'out', link=True)
    assert (tmp_path / 'out/images/dog/a.jpg').samefile(voc / 'JPEGImages/a.jpg')

    def elsewhere(*paths: Path) -> None:
        raise OSError(18, 'Invalid cross-device link')

    monkeypatch.setattr(os, 'link', elsewhere)
    with pytest.raises(DataError, match=r"a\.jpg' cannot be linked: Invalid cross-device link.*leave --link out"):
        import_images(VOC(voc, 'train'), tmp_path / 'other', link=True)
    assert not [p for p in tmp_path.iterdir() if 'other' in p.name]


def test_an_import_never_overwrites_and_leaves_nothing_when_it_fails(voc: Path, tmp_path: Path, synthaug: Any) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('mine')
    refused = synthaug('import', 'voc', voc, '--out', tmp_path / 'mine')
    assert refused.status == 2
    assert 'is not empty' in refused.err
    Image.new('L', (W + 1, H)).save(voc / 'SegmentationObject/d.png')
    refused = synthaug('import', 'voc', voc, '--out', tmp_path / 'out')
    assert refused.status == 2
    assert "d.png' has 17 x 12 pixels, the image" in refused.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['VOC2012', 'mine']


def _rgb(voc: Path) -> None:
    Image.new('RGB', (W, H)).save(voc / 'SegmentationObject/a.png')


def _other_palette(voc: Path) -> None:
    png(voc / 'SegmentationClass/a.png', np.full((H, W), DOG), [255 - c for c in PALETTE])


def _no_class(voc: Path) -> None:
    png(voc / 'SegmentationClass/a.png', np.full((H, W), 255))


def _class_21(voc: Path) -> None:
    png(voc / 'SegmentationClass/a.png', np.full((H, W), 21))


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (_rgb, r"SegmentationObject/a\.png' has the mode RGB"),
        (_other_palette, r"SegmentationClass/a\.png' has the colour .* for the index 12, VOC has \(64, 0, 128\)"),
        (_no_class, r"largest instance of 'a' \(index 2 of SegmentationObject\) has no class"),
        (_class_21, r"largest instance of 'a' .* has the class 21"),
        (lambda voc: (voc / 'SegmentationObject/a.png').write_bytes(b'no png'), r"SegmentationObject/a\.png' cannot be read"),
        (lambda voc: (voc / 'Annotations/a.xml').write_text('<annotation><object>'), r"Annotations/a\.xml' cannot be read"),
        (lambda voc: (voc / 'Annotations/a.xml').write_text('<a><object><name>zebra</name></object></a>'), r"a\.xml' names an object 'zebra'"),
        (lambda voc: (voc / 'JPEGImages/a.jpg').write_bytes(b''), r"JPEGImages/a\.jpg' cannot be read"),
        (lambda voc: (voc / 'JPEGImages/b.jpg').unlink(), r"1 of 4 images of the split are missing, first '.*JPEGImages/b\.jpg'"),
        (lambda voc: (voc / 'SegmentationClass/c.png').unlink(), r"1 of 4 masks of SegmentationClass are missing, first '.*c\.png'"),
        (lambda voc: (voc / 'ImageSets/Segmentation/train.txt').write_text('a\na\n'), 'names an image twice'),
        (lambda voc: (voc / 'ImageSets/Segmentation/train.txt').write_text('../a\n'), r"the line '\.\./a', which is no id"),
    ],
)
def test_voc_files_that_do_not_fit_are_named(voc: Path, tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(voc)
    with pytest.raises(DataError, match=said):
        import_images(VOC(voc, 'train'), tmp_path / 'out')


def test_voc_folders_and_splits_that_are_not_there_are_refused_with_what_is(voc: Path) -> None:
    with pytest.raises(DataError, match=r"holds no JPEGImages\. Give '.*VOC2012'"):
        VOC(voc.parent, 'train')
    with pytest.raises(DataError, match=r"'trian' is not in .* Did you mean 'train'"):
        VOC(voc, 'trian')
    with pytest.raises(DataError, match=r"the line 'a  1', which is no id\..*not that of one class"):
        VOC(voc, 'dog_train')
    assert VOC(voc, 'one').ids == ('a',)


# --- COCO ------------------------------------------------------------------------------------------------------------------


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, column by column, starting with zeros."""
    flat, counts, value = mask.T.ravel().astype(int), [], 0
    while len(flat):
        n = int((flat != value).argmax()) if (flat != value).any() else len(flat)
        counts.append(n)
        flat, value = flat[n:], 1 - value
    return {'size': list(mask.shape), 'counts': counts}


DOG_TEXT = 'P3480000000T1'
"""What pycocotools makes of the dog below."""


def square(y: int, x: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y : y + height, x : x + width] = True
    return mask


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    """1: a cat of two polygons (24 pixels) before a dog of run lengths (20) and a crowd (all); sub/2: a dog; 3: a crowd only; 4: nothing."""
    (tmp_path / 'images' / 'sub').mkdir(parents=True)
    for name in ('1.jpg', 'sub/2.png', '3.jpg'):
        Image.new('RGB', (W, H), 'teal').save(tmp_path / 'images' / name)
    images = [{'id': k, 'file_name': name, 'width': W, 'height': H} for k, name in ((11, '1.jpg'), (12, 'sub/2.png'), (13, '3.jpg'), (14, '4.jpg'))]
    two_parts = [[0, 0, 4, 0, 4, 4, 0, 4], [8, 8, 12, 8, 12, 10, 8, 10]]
    annotations = [
        {'id': 1, 'image_id': 11, 'category_id': 18, 'iscrowd': 0, 'area': 999, 'segmentation': runs(square(0, 8, 4, 5))},
        {'id': 2, 'image_id': 11, 'category_id': 17, 'iscrowd': 0, 'area': 1, 'segmentation': two_parts},
        {'id': 3, 'image_id': 11, 'category_id': 1, 'iscrowd': 1, 'segmentation': runs(square(0, 0, H, W))},
        {'id': 4, 'image_id': 12, 'category_id': 18, 'iscrowd': 0, 'segmentation': [[0, 0, 6, 0, 6, 6, 0, 6]]},
        {'id': 5, 'image_id': 13, 'category_id': 1, 'iscrowd': 1, 'segmentation': runs(square(0, 0, H, W))},
    ]
    categories = [{'id': 1, 'name': 'person'}, {'id': 17, 'name': 'cat'}, {'id': 18, 'name': 'dog'}]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def reader(tmp_path: Path, content: Any) -> COCO:
    (tmp_path / 'instances.json').write_text(content if isinstance(content, str) else json.dumps(content))
    return COCO(tmp_path / 'images', tmp_path / 'instances.json')


def test_coco_takes_the_largest_mask_of_polygons_and_run_lengths_without_crowds(coco: dict[str, Any], tmp_path: Path) -> None:
    """Not the largest `area` as stated, and never a crowd."""
    assert runs_of_text(DOG_TEXT) == runs(square(0, 8, 4, 5))['counts']
    for counts in (runs(square(0, 8, 4, 5))['counts'], DOG_TEXT):
        coco['annotations'][0]['segmentation'] = {'size': [H, W], 'counts': counts}
        found: Any = reader(tmp_path, coco).read('1')
        assert found.class_name == 'cat'
        assert (found.mask == square(0, 0, 4, 4) | square(8, 8, 2, 4)).all()
    coco['annotations'][1]['segmentation'] = [[0, 0, 4, 0, 4, 4, 0, 4]]  # 16 pixels: the dog is larger now
    found = reader(tmp_path, coco).read('1')
    assert found.class_name == 'dog'
    assert (found.mask == square(0, 8, 4, 5)).all()


def test_coco_is_imported_under_names_that_hold_their_folders(coco: dict[str, Any], tmp_path: Path, synthaug: Any) -> None:
    (tmp_path / 'instances.json').write_text(json.dumps(coco))
    done = synthaug('import', 'coco', tmp_path / 'images', tmp_path / 'instances.json', '--out', tmp_path / 'out')
    assert done.status == 0, done.err
    assert '2 images of 2 classes; 2 left out without an instance' in done.out
    images = RealImages(tmp_path / 'out/images')
    assert [images.ids(name) for name in images.classes] == [('cat/1.jpg',), ('dog/sub_2.png',)]
    assert np.asarray(Image.open(tmp_path / 'out/masks/dog/sub_2.png')).sum() == 36 * 255


def change(key: str, k: int, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content[key][k].update(values)


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (lambda c: c.pop('categories'), "have no list 'categories'"),
        (lambda c: c['annotations'][0].pop('category_id'), "are no instances of COCO: KeyError: 'category_id'"),
        (change('annotations', 0, category_id=5), 'annotation 1 has the category 5, which is none of the categories'),
        (change('annotations', 0, image_id=5), 'annotation 1 belongs to the image 5, which is none of the images'),
        (change('annotations', 0, segmentation=[]), 'annotation 1 of .* has no segmentation'),
        (change('annotations', 0, segmentation=[[1, 2, 3, 4]]), 'annotation 1 of .* is wrong: a polygon has 4 numbers'),
        (change('annotations', 0, segmentation=[[0, 0, 1e9, 0, 4, 4]]), 'annotation 1 of .* is wrong: a polygon lies far outside'),
        (
            change('annotations', 0, segmentation={'size': [H, W], 'counts': [3, 4]}),
            'annotation 1 of .* is wrong: its run lengths are no whole numbers that add up to the 192',
        ),
        (change('annotations', 0, segmentation={'size': [H, W], 'counts': '61é'}), "annotation 1 of .* is wrong: its text of run lengths holds 'é'"),
        (change('annotations', 0, segmentation={'size': [H, W], 'counts': '6P'}), 'annotation 1 of .* is wrong: its text of run lengths is cut short'),
        (change('annotations', 0, segmentation={'counts': [192]}), "annotation 1 of .* is wrong: 'size'"),
        (change('annotations', 0, segmentation={'size': [W, H], 'counts': [W * H]}), 'its mask has 12 x 16 pixels, the image 16 x 12'),
        (change('images', 0, width=W + 1, height=H), 'annotation 1 of .* is wrong'),
        (change('images', 1, width=W, height=H + 1), r"annotation 4 of .* has 16 x 13 pixels, the image '.*2\.png' 16 x 12"),
        (change('images', 0, file_name='gone.jpg'), r"1 of 2 images that the annotations name are missing, first '.*gone\.jpg'"),
        (change('images', 0, file_name='../1.jpg'), r"name the image '\.\./1\.jpg', outside of"),
        (change('images', 0, file_name='1.gif'), r"name the image '1\.gif', which would be passed over"),
        (change('images', 2, file_name='1.png'), "2 images have the name '1'"),
        (change('images', 2, id=11), '2 images have the id 11'),
        (change('categories', 0, name='cat'), r"\['cat'\] are repeated"),
        (change('categories', 0, name='a/b'), "'a/b' is empty, padded or holds a separator"),
    ],
)
def test_coco_entries_that_do_not_fit_are_named(coco: dict[str, Any], tmp_path: Path, damage: Callable[[dict[str, Any]], Any], said: str) -> None:
    damage(coco)
    with pytest.raises(DataError, match=said):
        import_images(reader(tmp_path, coco), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_file_that_is_no_json_or_without_any_instance_is_refused(coco: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match='cannot be read'):
        reader(tmp_path, '{"images": [')
    with pytest.raises(DataError, match='None of the 4 images has an instance'):
        import_images(reader(tmp_path, {**coco, 'annotations': []}), tmp_path / 'out')


def test_real_images_in_voc_layout_are_imported(shared: Path, tmp_path: Path) -> None:
    pack = shared / 'data' / 'coco_voc' / 'coco_voc.zip'
    if not pack.is_file():
        pytest.skip(f'reference data absent: {pack} does not exist')
    zipfile.ZipFile(pack).extractall(tmp_path)
    train, val = (import_images(VOC(tmp_path / 'VOC', split), tmp_path / split) for split in ('train', 'val'))
    assert (sum(train.counts.values()), sum(val.counts.values())) == (19, 21)
    assert (train.left_out, train.notes, val.left_out, val.notes) == ({}, {}, {}, {})
    # Of image 71 the train is index 13 of 13 and covers 6987 pixels, all cars together 636; it has no void region.
    assert np.asarray(Image.open(tmp_path / 'train/masks/train/000000000071.png')).astype(bool).sum() == 6987
