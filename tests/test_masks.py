"""An edit of the object or of the background changes nothing else, to the byte; masks that do not fit are refused before weights load."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image, ImageFilter

from synthaug_plugins.annotations.importing import import_images
from synthaug_plugins.annotations.voc import VOC, voc_colour
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, prepare
from synthaug_plugins.errors import DataError, ModelError, RecipeError, StoreError
from synthaug_plugins.generators.masks import Masks, build_masks
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.fit import FITS, frame
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.registry import GENERATORS, build_strict
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.store.store import Store

SIZES = {'two/a': (32, 32), 'two/b': (48, 32), 'three/a': (24, 40)}  # width, height


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """images/ and masks/ of two digits' classes: colourful noise, an object in the middle third of each image."""
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / 'images' / f'{name}.png')
        mask = np.zeros((height, width), bool)
        mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = True
        save_mask(tmp_path / 'masks' / f'{name}.png', mask)
    return tmp_path


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Tiny pipelines of random weights."""
    makers = {'sd': tiny_pipelines.sd, 'sd inpaint': partial(tiny_pipelines.sd, inpaint=True), 'sdxl inpaint': partial(tiny_pipelines.sdxl, inpaint=True)}
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            made[name] = str(makers[name](tmp_path_factory.mktemp('pipeline')))
        return made[name]

    return get


def recipe(data: Path, masks: dict[str, Any], generator: dict[str, Any], **more: Any) -> dict[str, Any]:
    told = {'type': 'RealGuidance', 'sampler': {'num_steps': 4}, **generator, 'masks': {'folder': str(data / 'masks'), **masks}}
    return complete({'generator': told, 'data': str(data / 'images'), 'per_class': 2, 'inspectors': [], **more})


def stored(store: Store) -> list[tuple[str, np.ndarray]]:
    """(source, pixels) of every image of a store."""
    reader = StoreReader(store.folder)
    return [(r['source'], np.asarray(Image.open(io.BytesIO(reader.read_image(r))))) for r in store.index().sort_by('id').to_pylist()]


def mask_of(data: Path, source: str) -> np.ndarray:
    return np.asarray(Image.open(data / 'masks' / Path(source).with_suffix('.png'))) > 0


MODELS: dict[str, dict[str, Any]] = {
    'latents': {'model': 'embedded:digits_sd', 'strength': 0.5},
    'pixels': {'model': 'embedded:digits_edm', 'sigma': 0.8},
    'DAFusion': {'type': 'DAFusion', 'model': 'embedded:digits_sd', 'class_names': 'allowed', 't0': [0.5, 1.0]},
    'sd inpaint': {'t0': 1.0},
    'sdxl inpaint': {'t0': 0.5},
}


@pytest.mark.parametrize('edit', ['object', 'background'])
@pytest.mark.parametrize('name', MODELS)
def test_masked_edits_change_nothing_outside_the_mask(data: Path, pipeline: Callable[[str], str], name: str, edit: str) -> None:
    """Through the engine into a store: sizes are those of the sources, bytes outside of the mask theirs, and inside everything is another."""
    options = {'model': pipeline(name), **MODELS[name]} if 'inpaint' in name else MODELS[name]
    images = stored(generate(recipe(data, {'edit': edit, 'dilate': 0}, {'fit': 'pad', **options}), data / 'store', 'cpu', quiet=True))
    assert len(images) == 4
    for source, made in images:
        real, mask = np.asarray(Image.open(data / 'images' / source)), mask_of(data, source)
        region = mask if edit == 'object' else ~mask
        assert made.shape == real.shape
        assert np.array_equal(made[~region], real[~region])
        assert (made[region] != real[region]).any(axis=-1).mean() > 0.9


@pytest.mark.parametrize('fit', FITS)
def test_what_lies_outside_of_the_grown_region_or_of_a_crop_keeps_its_bytes(data: Path, fit: str) -> None:
    """Of a canvas of 16 a width of 128 is 4 pixels: 2 on each side, times what the image was shrunk by."""
    images = stored(generate(recipe(data, {'dilate': 128}, {'fit': fit, **MODELS['latents']}), data / 'store', 'cpu', quiet=True))
    for source, made in images:
        real, mask = np.asarray(Image.open(data / 'images' / source)), mask_of(data, source)
        height, width = mask.shape
        shrunk = {'squash': (height / 16, width / 16), 'pad': (max(mask.shape) / 16,) * 2, 'crop': (min(mask.shape) / 16,) * 2}[fit]
        rows, columns = (round(2 * s) for s in shrunk)
        y, x = mask.nonzero()
        region = np.zeros_like(mask)
        region[max(y.min() - rows, 0) : y.max() + rows + 1, max(x.min() - columns, 0) : x.max() + columns + 1] = True
        if fit == 'crop':
            kept = np.zeros_like(mask)
            side = min(mask.shape)
            kept[(height - side) // 2 :, (width - side) // 2 :][:side, :side] = True
            region &= kept
        assert np.array_equal(made[~region], real[~region])
        changed = (made != real).any(axis=-1)
        assert changed[region].mean() > 0.9
        assert changed[region & ~mask].mean() > 0.9, 'the band that was added is edited, too'


def test_the_edit_of_an_image_does_not_depend_on_its_batch(data: Path) -> None:
    one, many = (
        stored(generate(recipe(data, {'soft': 4}, {'fit': 'pad', **MODELS['latents']}, batch_size=size), data / f'store{size}', 'cpu', quiet=True))
        for size in (1, 32)
    )
    assert all(a[0] == b[0] and np.abs(a[1].astype(int) - b[1]).max() <= 1 for a, b in zip(one, many, strict=True))


def test_an_inpainting_network_sees_the_mask_and_the_image_without_its_object(
    data: Path, pipeline: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode = TextModel.encode
    monkeypatch.setattr(TextModel, 'encode', lambda self, images, noise=None: (seen.append(images), encode(self, images, noise))[1])
    generate(
        recipe(data, {'dilate': 0}, {'model': pipeline('sd inpaint'), 't0': 0.5, 'fit': 'squash'}, per_class={'two': 1, 'three': 1}),
        data / 's',
        'cpu',
        quiet=True,
    )
    whole, hidden = [image for image in seen if (image != 0).all(dim=1).float().mean() > 0.99], [image for image in seen if (image == 0).float().mean() > 0.05]
    assert (len(whole), len(hidden)) == (2, 2)
    for image, without in zip(whole, hidden, strict=True):
        grey = (without == 0).all(dim=1, keepdim=True)
        assert torch.equal(without, image * ~grey)
        assert grey[0, 0, 6:10, 6:10].all()
        assert not grey[0, 0, :5].any()


# --- the region --------------------------------------------------------------------------------------------------------------


def blob(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    mask = np.zeros((height, width), bool)
    for y, x in zip(rng.integers(0, height, 4), rng.integers(0, width, 4), strict=True):
        mask[y : y + height // 10, x : x + width // 8] = True
    return mask


@pytest.fixture
def masks(tmp_path: Path) -> Callable[..., Masks]:
    return lambda **options: Masks(str(tmp_path), **options)


def test_the_region_is_the_published_one_on_a_canvas_of_512(masks: Callable[..., Masks]) -> None:
    """A maximum filter over windows as wide as `dilate`, one more to have a middle."""
    mask = blob(512, 512)
    where = frame((512, 512), (512, 512), 'squash')
    grown = np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(17))) > 0
    assert np.array_equal(masks().region(mask, where), grown)
    assert np.array_equal(masks(dilate=0, edit='background').region(mask, where), ~mask)
    shrunk = np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MinFilter(17))) > 0
    assert np.array_equal(masks(edit='background').region(mask, where), ~shrunk)


def test_widths_grow_with_the_image_and_do_not_depend_on_the_models_size(masks: Callable[..., Masks]) -> None:
    small = blob(128, 256)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    of = {
        (size, canvas): masks().alpha(m, frame(m.shape, (canvas, canvas), 'pad'))
        for size, m in (('small', small), ('large', large))
        for canvas in (64, 256, 512)
    }
    for size in ('small', 'large'):
        assert np.array_equal(of[size, 64], of[size, 512])
        assert np.array_equal(of[size, 256], of[size, 512])
    assert np.array_equal(of['large', 512], of['small', 512].repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize('edit', ['object', 'background'])
@pytest.mark.parametrize(('dilate', 'soft'), [(16, 8), (16, 3), (30, 2), (3, 1.5)])
def test_a_soft_edge_lies_between_the_object_and_the_end_of_the_region(masks: Callable[..., Masks], edit: str, dilate: float, soft: float) -> None:
    mask, where = blob(300, 500), frame((300, 500), (512, 512), 'pad')
    hard, alpha = masks(edit=edit, dilate=dilate).region(mask, where), masks(edit=edit, dilate=dilate, soft=soft).alpha(mask, where)
    assert np.array_equal(alpha > 0, hard), 'exactly 0 outside, nowhere else'
    assert (alpha[mask if edit == 'object' else ~mask] == 1).all()
    assert alpha.dtype == np.float32
    assert alpha.max() == 1


def test_a_soft_edge_is_a_straight_ramp(masks: Callable[..., Masks]) -> None:
    mask = np.zeros((512, 512), bool)
    mask[:, 300:] = True
    alpha = masks(dilate=32, soft=16).alpha(mask, frame((512, 512), (512, 512), 'squash'))[100]
    steps = np.diff(alpha[282:302])
    assert alpha[283] == 0 < alpha[284]
    assert alpha[300] == 1
    assert np.allclose(steps[1:18], 1 / 17)


def test_every_cell_of_the_models_grid_that_meets_the_region_is_made_anew(masks: Callable[..., Masks]) -> None:
    """For all shapes: the canvas' mask, laid back over the image, covers the region."""
    rng = np.random.default_rng(2)
    for fit in FITS:
        for _ in range(20):
            height, width = (int(n) for n in rng.integers(5, 90, 2))
            mask = np.zeros((height, width), bool)
            mask[rng.integers(height), rng.integers(width)] = True
            where = frame((height, width), (16, 24), fit)
            region = masks(dilate=0).region(mask, where)
            covered = where.cover(region)
            assert covered.shape == (16, 24)
            for y, x in np.argwhere(region):
                (scale_y, scale_x), (top, left, _, _), (box_top, box_left) = where.scale, where.shown, where.box[:2]
                first, last = (int(box_top + (y + d - top) * scale_y - e) for d, e in ((0.001, 0), (0.999, 0)))
                west, east = (int(box_left + (x + d - left) * scale_x) for d in (0.001, 0.999))
                assert covered[first : last + 1, west : east + 1].all()
            assert covered.any() == region.any()


@pytest.mark.parametrize('fit', FITS)
def test_an_image_laid_on_the_canvas_and_back_is_itself(fit: str) -> None:
    """Smooth pictures, so that resampling loses next to nothing."""
    y, x = np.mgrid[:90, :60] / 90
    image = np.stack([255 * y, 255 * x, 128 + 100 * np.sin(4 * x + 3 * y)], axis=-1).astype(np.uint8)
    where = frame((90, 60), (128, 128), fit)
    back = where.back(where.lay(image))
    assert back.shape == image[where.inner].shape
    assert np.abs(back.astype(int) - image[where.inner]).max() <= 3


# --- refusals ----------------------------------------------------------------------------------------------------------------


def _replace(data: Path, image: Image.Image) -> None:
    image.save(data / 'masks/two/b.png')


PALETTE = [c for k in range(256) for c in voc_colour(k)]


def palette_image(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), 'P')
    image.putpalette(PALETTE)
    return image


@pytest.mark.parametrize(
    ('damage', 'masks', 'said'),
    [
        (lambda data: (data / 'masks/two/b.png').unlink(), {}, "'two/b.png' has no mask: .*two/b.png' does not exist"),
        (lambda data: _replace(data, Image.new('L', (32, 48), 255)), {}, "two/b.png' has 32 x 48 pixels, the image 'two/b.png' 48 x 32"),
        (lambda data: _replace(data, Image.new('L', (48, 32))), {}, "two/b.png' is empty: there is no object to edit"),
        (lambda data: _replace(data, Image.new('L', (48, 32), 255)), {'edit': 'background'}, 'covers the whole image: there is no background to edit'),
        (lambda data: _replace(data, palette_image(np.full((32, 48), 255))), {}, 'is empty: .*of a palette, 255 counts as background'),
        (lambda data: _replace(data, Image.new('RGB', (48, 32))), {}, 'has the mode RGB: colours'),
        (lambda data: _replace(data, Image.linear_gradient('L').resize((48, 32))), {}, 'holds the levels .*: grey levels or numbers of objects'),
        (lambda data: (data / 'masks/two/b.png').write_bytes(b''), {}, "two/b.png' cannot be read"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_weights_load(
    data: Path, damage: Callable[[Path], Any], masks: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(data)
    monkeypatch.setattr(TextModel, 'load', lambda *_, **__: pytest.fail('weights were loaded'))
    with pytest.raises(DataError, match=said):
        generate(recipe(data, masks, MODELS['latents']), data / 'store', 'cpu', quiet=True)
    assert not (data / 'store').exists()


def test_an_object_that_the_crop_cuts_away_is_refused_by_name(data: Path) -> None:
    mask = np.zeros((32, 48), bool)
    mask[:, :4] = True
    save_mask(data / 'masks/two/b.png', mask)
    with pytest.raises(DataError, match=r"The object of 'two/b\.png' lies in what fit = 'crop' cuts away.*fit='pad'"):
        prepare(recipe(data, {}, {'fit': 'crop', **MODELS['pixels']}))
    prepare(recipe(data, {}, {'fit': 'pad', **MODELS['pixels']}))


def test_voc_palettes_are_read_and_void_counts_as_background(tmp_path: Path) -> None:
    indices = np.zeros((4, 6))
    indices[1, 1:3], indices[2, 2:4], indices[0] = 15, 3, 255
    (tmp_path / 'cat').mkdir()
    palette_image(indices).save(tmp_path / 'cat' / 'a.png')
    found = Masks(str(tmp_path)).object('cat/a.jpg')
    assert np.array_equal(found, (indices > 0) & (indices < 255))
    for value in (1, 255):
        Image.fromarray((found * value).astype(np.uint8)).save(tmp_path / 'cat' / 'b.png')
        assert np.array_equal(Masks(str(tmp_path)).object('cat/b.jpeg'), found)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'edit': 'objects'}, "masks.edit = 'objects' is unknown. Did you mean 'object'"),
        ({'dilate': -1}, 'masks.dilate = -1 is out of range'),
        ({'dilate': '16'}, "masks.dilate = '16' is out of range"),
        ({'soft': True}, 'masks.soft = True is out of range'),
        ({'soft': 9}, 'masks.soft = 9 is wider than what dilate = 16 adds.*At most 8'),
        ({'dilat': 3}, "masks has no option 'dilat'. Did you mean 'dilate'"),
        ({'folder': None}, 'The folder of masks None does not exist'),
        ({'folder': 'nowhere'}, "The folder of masks 'nowhere' does not exist"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises((RecipeError, DataError), match=said):
        build_masks({'folder': str(tmp_path), **options})
    assert build_masks(None) is None
    with pytest.raises(RecipeError, match='names no folder'):
        build_masks({'edit': 'object'})


def test_an_inpainting_pipeline_without_masks_is_refused(pipeline: Callable[[str], str]) -> None:
    for options in ({'type': 'TextToImage'}, {'type': 'RealGuidance', 't0': 0.5}, {'type': 'DAFusion', 'class_names': 'allowed'}):
        with pytest.raises(ModelError, match=rf'its network needs a mask, and {options["type"]} has none\. Use DAFusion or RealGuidance with masks'):
            build_strict({**options, 'model': pipeline('sd inpaint')}, GENERATORS)


def test_masks_behind_a_crop_are_refused_and_behind_another_edit_they_still_fit(data: Path) -> None:
    masked = {**MODELS['latents'], 'type': 'RealGuidance', 'sampler': {'num_steps': 3}, 'masks': {'folder': str(data / 'masks'), 'dilate': 0}}
    cropping, padding = ({'type': 'RealGuidance', **MODELS['pixels'], 'fit': fit} for fit in ('crop', 'pad'))
    with pytest.raises(RecipeError, match=r'Sequential edits within masks \(RealGuidance, place 1\) what was cropped before'):
        build_strict({'type': 'Sequential', 'generators': [cropping, masked]}, GENERATORS)
    build_strict({'type': 'Sequential', 'generators': [padding, masked]}, GENERATORS)
    twice = complete({'generator': {'type': 'Sequential', 'generators': [masked, masked]}, 'data': str(data / 'images'), 'per_class': 2, 'inspectors': []})
    for source, made in stored(generate(twice, data / 'store', 'cpu', quiet=True)):
        real, mask = np.asarray(Image.open(data / 'images' / source)), mask_of(data, source)
        assert np.array_equal(made[~mask], real[~mask])
        assert not np.array_equal(made[mask], real[mask])
    after = complete({'generator': {'type': 'Sequential', 'generators': [padding, masked]}, 'data': str(data / 'images'), 'per_class': 1, 'inspectors': []})
    assert {made.shape for _, made in stored(generate(after, data / 'after', 'cpu', quiet=True))} == {(8, 8, 3), (8, 5, 3)}


def test_masks_are_set_on_the_command_line_where_the_recipe_has_none_or_says_none(data: Path, synthaug: Any) -> None:
    for said in ('', ', masks=None'):
        (data / 'recipe.py').write_text(
            f"generator = dict(type='RealGuidance', model='embedded:digits_edm', sigma=0.5{said})\ninspectors = []\nper_class = 1\n"
        )
        option = f"generator.masks={{'folder': '{data / 'masks'}', 'edit': 'background'}}"
        done = synthaug('generate', data / 'recipe.py', '--data', data / 'images', '--out', data / f'store{len(said)}', '--cfg-options', option)
        assert done.status == 0, done.err
    assert Store.open(data / 'store0').plan.recipe['generator']['masks'] == Store.open(data / 'store12').plan.recipe['generator']['masks']


def test_changed_masks_are_a_changed_recipe_and_equal_ones_are_not(data: Path) -> None:
    plan = recipe(data, {}, MODELS['pixels'])
    generate(plan, data / 'store', 'cpu', quiet=True)
    shutil.copytree(data / 'masks', data / 'elsewhere')
    generate(recipe(data, {'folder': str(data / 'elsewhere')}, MODELS['pixels']), data / 'store', 'cpu', quiet=True)
    mask = mask_of(data, 'two/a.png').copy()
    mask[0, 0] = True
    save_mask(data / 'masks/two/a.png', mask)
    with pytest.raises(StoreError, match=r'masks\.sha256'):
        generate(plan, data / 'store', 'cpu', quiet=True)


def test_a_lossy_format_is_said_once(data: Path) -> None:
    said: list[str] = []
    prepare(recipe(data, {}, MODELS['pixels'], image={'format': 'jpg'}), said.append)
    assert sum("only 'png' keeps pixels outside of the masks" in sentence for sentence in said) == 1
    said.clear()
    prepare(recipe(data, {}, MODELS['pixels']), said.append)
    assert not [s for s in said if 'png' in s]


def test_another_size_is_said(data: Path) -> None:
    said: list[str] = []
    for size in (None, 'source', 32):
        prepare(recipe(data, {}, MODELS['pixels'], image={'size': size}), said.append)
    assert [s for s in said if 'image.size' in s] == [
        "image.size = 32 resamples every image: only None and 'source' keep pixels outside of the masks as they are."
    ]


def test_unmasked_recipes_keep_their_identity(data: Path) -> None:
    """A store that was made before there were masks goes on."""
    plain = build_strict({'type': 'RealGuidance', **MODELS['pixels']}, GENERATORS)
    assert isinstance(plain.model, DenoiserModel)
    assert 'masks' not in plain.identity()


def test_real_photographs_keep_their_bytes_around_what_is_edited(shared: Path, tmp_path: Path, pipeline: Callable[[str], str]) -> None:
    pack = shared / 'data' / 'coco_voc' / 'coco_voc.zip'
    if not pack.is_file():
        pytest.skip(f'reference data absent: {pack} does not exist')
    zipfile.ZipFile(pack).extractall(tmp_path)
    data = tmp_path / 'voc'
    import_images(VOC(tmp_path / 'VOC', 'train'), data)
    for folder in (data / 'images').iterdir():
        if folder.name not in ('dog', 'train'):
            shutil.rmtree(folder)
    real_images = RealImages(data / 'images')
    for edit in ('object', 'background'):
        told = {'model': pipeline('sd inpaint'), 'strength': 0.8, 'fit': 'pad'}
        store = generate(recipe(data, {'edit': edit, 'soft': 4}, told, per_class=1), tmp_path / edit, 'cpu', quiet=True)
        for source, made in stored(store):
            real, mask = real_images.load(source), mask_of(data, source)
            reach = round(8 * max(mask.shape) / 512)
            core = Image.fromarray((mask if edit == 'object' else ~mask).astype(np.uint8))
            grown = np.asarray(core.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
            assert made.shape == real.shape
            assert np.array_equal(made[~grown], real[~grown])
            assert (made != real).any(axis=-1)[grown].mean() > 0.9
