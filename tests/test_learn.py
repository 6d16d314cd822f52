"""`synthaug learn`: from a recipe and a folder of images to a model that generates, through stops and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import REPO, kill_in_training
from synthaug_plugins.engine import learn as learn_module
from synthaug_plugins.engine import learn_output
from synthaug_plugins.engine.learn import learn, reconstruct_model
from synthaug_plugins.engine.learn_folder import LearnFolder
from synthaug_plugins.engine.learn_recipe import KEYS, complete_learn_recipe, decisive, load_learn_recipe, model_config
from synthaug_plugins.errors import DataError, ModelError, RecipeError, Stopped, StoreError
from synthaug_plugins.learning.checkpoint import load_checkpoint
from synthaug_plugins.learning.data import decode
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.weights import load_weights, read_config

RECIPE: dict[str, Any] = {
    'model': {
        'kind': 'edm',
        'resolution': 8,
        'channels': 1,
        'label_conditioning': True,
        'label_dropout': 0.1,
        'sigma_data': None,
        'network': {'type': 'ddpmpp', 'channels': 16, 'channel_mult': [1], 'blocks_per_level': 1, 'attention_resolutions': []},
    },
    'training': {'images_shown': 8 * 12, 'batch_size': 8, 'accumulation': 2, 'checkpoint_steps': 3, 'warmup_images': 16},
    'augment': {'p': 0.2},
    'samples': {'every': 1000, 'per_class': 3, 'num_steps': 3},
    'licence': 'CC0-1.0',
}

PLOTS: list[bytes] = []

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def _few_noise_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn_module, '_SIGMAS', [0.1, 1.0, 10.0])


@pytest.fixture(autouse=True)
def _one_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first training of this process draws its losses, which takes longer than these trainings; the others take the same picture."""
    draw = learn_output._plot

    def plot(*asked: Any) -> bytes:
        if not PLOTS:
            PLOTS.append(draw(*asked))
        return PLOTS[0]

    monkeypatch.setattr(learn_output, '_plot', plot)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_data(tmp_path / 'data')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of RECIPE from start to end in one call."""
    folder = tmp_path_factory.mktemp('unbroken')
    learn(recipe(draw_data(folder / 'data')), folder / 'out', 'cpu', quiet=True)
    return folder / 'out'


def draw_data(folder: Path) -> Path:
    """Two classes of small images of several sizes and kinds."""
    rng = np.random.default_rng(0)
    for name, half in (('left', slice(0, 6)), ('right', slice(6, 12))):
        (folder / name).mkdir(parents=True)
        for k in range(8):
            pixels = rng.integers(0, 60, (12, 12 + k % 3, 3), dtype=np.uint8)
            pixels[:, half] += 180
            Image.fromarray(pixels).convert('L' if k % 2 else 'RGB').save(folder / name / f'{k}.png')
    return folder


def recipe(data: Path, **changes: Any) -> dict[str, Any]:
    """RECIPE with dotted changes, complete."""
    copy = json.loads(json.dumps(RECIPE))
    copy['data'] = str(data)
    for key, value in changes.items():
        where = copy
        *parents, last = key.split('__')
        for parent in parents:
            where = where[parent]
        where[last] = value
    return complete_learn_recipe(copy)


def assert_same_end(a: Path, b: Path) -> None:
    """The last checkpoints (weights, averages and optimizer, float32) and the model folders hold the same bits."""
    states = [load_checkpoint(folder / 'checkpoints') for folder in (a, b)]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0][1]['step'] == states[1][1]['step']
    for one, other in ((states[0][0], states[1][0]), (load_weights(a / 'model'), load_weights(b / 'model'))):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], v) for k, v in other.items())


def test_a_folder_of_images_becomes_a_model_that_generates(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    trained = learn(recipe(data, samples__every=48), out, 'cpu', quiet=True)
    assert trained.images_shown == 96
    assert sorted(p.name for p in out.iterdir()) == [
        'checkpoints',
        'data',
        'learn.json',
        'log.jsonl',
        'loss_per_sigma.csv',
        'loss_per_sigma.png',
        'model',
        'samples',
    ]
    config, card = read_config(out / 'model'), json.loads((out / 'model' / 'card.json').read_text())
    assert config['classes'] == ['left', 'right']
    assert config['augment_labels'] == 9
    pixels = np.load(out / 'data' / 'images.npy')
    assert config['sigma_data'] == pytest.approx(np.sqrt(((pixels / 127.5 - 1) ** 2).mean()), abs=1e-4)
    assert card['licence'] == 'CC0-1.0'
    assert card['data']['images_per_class'] == {'left': 8, 'right': 8}
    assert str(tmp_path) not in json.dumps(card)
    assert sorted(p.name for p in (out / 'samples').iterdir()) == ['000000048.png', '000000096.png']
    with Image.open(out / 'samples' / '000000096.png') as sheet:
        assert sheet.height == 2 * 68 + 4  # two classes
    with Image.open(out / 'loss_per_sigma.png') as plot:
        assert plot.width > 600
    log = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    assert [e['images_shown'] for e in log] == [24, 48, 72, 96]
    assert set(log[0]) == {'images_shown', 'loss', 'seconds', 'images_per_s'}
    table = (out / 'loss_per_sigma.csv').read_text().splitlines()
    assert table[0] == 'sigma,loss,standard_error'
    assert len(table) == 4

    from synthaug_plugins.generators.edm import EDM
    from synthaug_plugins.store.plan import make_blocks

    generator = EDM(str(out / 'model'))
    generator.check(['right'])
    generator.setup(torch.device('cpu'), None)
    (block,) = make_blocks(['right'], 2, None, 2, 1)
    requests = [r for r, _ in zip(generator.requests(block.parts[0], 0), range(2), strict=False)]
    assert generator.generate(requests).shape == (2, 8, 8, 3)


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(data: Path, unbroken: Path, tmp_path: Path) -> None:
    kill_in_training(lambda: learn(recipe(data), tmp_path / 'killed', 'cpu'), 56)
    state = json.loads((tmp_path / 'killed' / 'checkpoints' / 'checkpoint.json').read_text())
    assert 6 <= state['step'] < 12
    decoded = (tmp_path / 'killed' / 'data' / 'images.npy').stat()
    learn(recipe(data), tmp_path / 'killed', 'cpu', quiet=True)
    assert (tmp_path / 'killed' / 'data' / 'images.npy').stat().st_mtime_ns == decoded.st_mtime_ns  # not decoded again
    assert_same_end(tmp_path / 'killed', unbroken)


def test_ctrl_c_says_what_is_kept_and_the_same_call_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stop(self: Any, images_shown: int, loss: Any) -> None:
        calls.append(images_shown)
        if images_shown == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(learn_module.TrainingProgress, 'step', stop)
    with pytest.raises(Stopped, match=r'24 images.*goes on'):
        learn(recipe(data), tmp_path / 'out', 'cpu')
    monkeypatch.setattr(learn_module.TrainingProgress, 'step', lambda self, images_shown, loss: calls.append(images_shown))
    learn(recipe(data), tmp_path / 'out', 'cpu')
    assert calls[:7] == [8, 16, 24, 32, 40, 32, 40]


def test_a_stop_while_a_sheet_is_drawn_tells_the_newest_checkpoint_and_loses_no_sheet(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    done, draw = recipe(data, samples__every=48), learn_module.draw_sheet
    monkeypatch.setattr(learn_module, 'draw_sheet', stop)
    with pytest.raises(Stopped, match='48 images'):
        learn(done, tmp_path / 'out', 'cpu', quiet=True)
    monkeypatch.setattr(learn_module, 'draw_sheet', draw)
    learn(done, tmp_path / 'out', 'cpu', quiet=True)
    assert sorted(p.name for p in (tmp_path / 'out' / 'samples').iterdir()) == ['000000072.png', '000000096.png']


def test_a_finished_training_goes_on_when_it_is_made_longer(data: Path, unbroken: Path, tmp_path: Path) -> None:
    learn(recipe(data, training__images_shown=48), tmp_path / 'out', 'cpu', quiet=True)
    learn(recipe(data), tmp_path / 'out', 'cpu', quiet=True)
    assert_same_end(tmp_path / 'out', unbroken)
    assert [json.loads(x)['images_shown'] for x in (tmp_path / 'out' / 'log.jsonl').read_text().splitlines()] == [24, 48, 72, 96]


def test_another_recipe_or_other_images_are_refused_by_key(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    short = {'training__images_shown': 24}
    learn(recipe(data, **short), out, 'cpu', quiet=True)
    before = (out / 'model' / 'model.safetensors').read_bytes()
    changes = {'training__learning_rate': 1e-4, 'model__network__channels': 32, 'seed': 7, 'augment': {'p': 0.3}}
    with pytest.raises(RecipeError, match=r'differs in augment, model\.network\.channels, seed, training\.learning_rate'):
        learn(recipe(data, **short, **changes), out, 'cpu', quiet=True)
    said = {'training__weight_decay': 0.01, 'augment': {'p': 0.2, 'yflip': 1}}  # what holds anyway
    learn(recipe(data, **short, **said), out, 'cpu', quiet=True)
    moved = shutil.copytree(data, tmp_path / 'elsewhere')
    learn(recipe(moved, **short), out, 'cpu', quiet=True)  # the same images in another place are the same images
    (moved / 'left' / '0.png').write_bytes((moved / 'right' / '1.png').read_bytes())
    with pytest.raises(RecipeError, match='data changed'):
        learn(recipe(moved, **short), out, 'cpu', quiet=True)
    assert (out / 'model' / 'model.safetensors').read_bytes() == before


def test_a_folder_of_the_user_is_never_touched(data: Path, tmp_path: Path) -> None:
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.tex').write_text('precious')
    with pytest.raises(RecipeError, match='holds no training'):
        learn(recipe(data), tmp_path / 'thesis', 'cpu', quiet=True)
    assert [p.name for p in (tmp_path / 'thesis').iterdir()] == ['chapter.tex']


def test_a_folder_within_the_images_is_refused_since_it_would_become_a_class(data: Path, tmp_path: Path) -> None:
    (tmp_path / 'link').symlink_to(data)
    for out in (data / 'out', tmp_path / 'link' / 'left' / 'out'):
        with pytest.raises(RecipeError, match='where it would become a class'):
            learn(recipe(data), out, 'cpu', quiet=True)
    assert sorted(p.name for p in data.iterdir()) == ['left', 'right']


def test_a_disk_that_fills_while_images_are_decoded_is_named(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / 'out' / 'data'
    LearnFolder(tmp_path / 'out', 'edm', recipe(data), decisive)
    cache.mkdir()
    (cache / '.images.partial').symlink_to('/dev/full')
    with pytest.raises(StoreError, match='the disk is full'):
        learn(recipe(data), tmp_path / 'out', 'cpu', quiet=True)


def test_without_a_gpu_the_loss_of_large_images_is_taken_from_few_and_the_title_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    monkeypatch.setattr(learn_module, '_LOSS_VALUES', 13 * 8 * 8)
    monkeypatch.setattr(learn_module, '_FEWEST', 5)
    monkeypatch.setattr(learn_module, 'write_losses', lambda folder, table, distribution, title: titles.append(title))
    learn(recipe(data, training__images_shown=8), tmp_path / 'out', 'cpu', quiet=True)
    assert 'loss on 13 training images' in titles[0]


def test_two_trainings_cannot_share_a_folder(data: Path, tmp_path: Path) -> None:
    ours = LearnFolder(tmp_path / 'out', 'edm', recipe(data), decisive)
    with ours.at_work(str), pytest.raises(RecipeError, match='Another process'):
        learn(recipe(data), tmp_path / 'out', 'cpu', quiet=True)


def test_a_folder_of_another_kind_of_run_is_refused(data: Path, tmp_path: Path) -> None:
    LearnFolder(tmp_path / 'out', 'words', {}, dict)
    before = (tmp_path / 'out' / 'learn.json').read_bytes()
    with pytest.raises(RecipeError, match='holds a learning of class words, no training'):
        learn(recipe(data), tmp_path / 'out', 'cpu', quiet=True)
    assert (tmp_path / 'out' / 'learn.json').read_bytes() == before


def test_decoding_is_done_once_and_again_when_the_folder_changes(data: Path, tmp_path: Path) -> None:
    said: list[int] = []

    def images() -> Any:
        return decode(RealImages(data), ['right', 'left'], 8, 1, tmp_path / 'cache', lambda done, total: said.append(done))

    first = images()
    assert first.pixels.shape == (16, 1, 8, 8)
    assert first.labels.tolist() == [0] * 8 + [1] * 8
    assert first.enlarged == 0
    right = first.pixels[first.labels == 0]
    assert (right[..., 5:].mean((1, 2, 3)) > right[..., :3].mean((1, 2, 3)) + 60).all()
    assert images().sha256 == first.sha256
    assert len(said) == 16
    Image.new('RGB', (4, 4)).save(data / 'left' / 'new.png')
    second = images()
    assert (len(second.pixels), second.enlarged, len(said)) == (17, 1, 33)
    assert second.sha256 != first.sha256


def test_a_broken_image_is_named_before_training(data: Path, tmp_path: Path) -> None:
    (data / 'left' / '3.png').write_bytes(b'not an image')
    with pytest.raises(DataError, match=r'3\.png'):
        learn(recipe(data), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out' / 'checkpoints').exists()


def test_classes_that_the_folder_does_not_have_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only in the recipe \\['middle'\\]"):
        learn(recipe(data, classes=['left', 'middle', 'right']), tmp_path / 'out', 'cpu', quiet=True)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('change', 'kind', 'named'),
    [
        ({'modle': 1}, RecipeError, 'modle.*model'),
        ({'training__batchsize': 8}, RecipeError, 'batchsize.*batch_size'),
        ({'training__seed': 8}, RecipeError, 'seed'),
        ({'training__accumulation': 3}, RecipeError, 'accumulation'),
        ({'training__images_shown': 0}, RecipeError, 'images_shown'),
        ({'training__power_ema_stds': [0.5]}, RecipeError, 'std'),
        ({'training__P_mean': 'low'}, RecipeError, 'P_mean'),
        ({'training__class_balance': 'no'}, RecipeError, 'class_balance'),
        ({'seed': 1.5}, RecipeError, 'seed'),
        ({'augment__xflop': 1}, RecipeError, 'xflop.*xflip'),
        ({'augment__p': 2}, RecipeError, 'p = 2'),
        ({'samples__every': -1}, RecipeError, 'every'),
        ({'classes': ['left', 'right', 'left']}, RecipeError, "names 'left' twice"),
        ({'model__classes': ['a']}, RecipeError, 'classes'),
        ({'model__kind': 'ddpm'}, ModelError, 'kind'),
        ({'model__resolution': 9, 'model__network__channel_mult': [1, 2]}, ModelError, '9'),
        ({'model__network__chanels': 9}, ModelError, 'chanels.*channels'),
        ({'model__kind': 'vp', 'training__P_mean': -1}, RecipeError, 'P_mean'),
        ({'generator': {}}, RecipeError, 'synthaug generate'),
    ],
)
def test_a_wrong_recipe_is_refused_before_any_image_is_read(change: dict[str, Any], kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        recipe(Path('nowhere'), **change)


def test_missing_parts_of_a_recipe_are_named() -> None:
    for key in ('model', 'training'):
        with pytest.raises(RecipeError, match=f'no {key}'):
            complete_learn_recipe({k: v for k, v in RECIPE.items() if k != key})
    with pytest.raises(RecipeError, match='--data'):
        learn(complete_learn_recipe(RECIPE), 'nowhere', 'cpu')


def test_unconditional_and_other_kinds_of_models_are_learnt(data: Path, tmp_path: Path) -> None:
    changes = {'model__label_conditioning': False, 'model__label_dropout': 0, 'training__class_balance': True, 'training__images_shown': 24, 'augment': None}
    for kind in ('vp', 'iddpm'):
        learn(recipe(data, model__kind=kind, **changes), tmp_path / kind, 'cpu', quiet=True)
        assert read_config(tmp_path / kind / 'model')['kind'] == kind


def test_an_average_of_another_width_becomes_a_model(data: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    learn(recipe(data, training__power_ema_stds=[0.05, 0.1], training__snapshot_steps=2), out, 'cpu', quiet=True)
    reconstruct_model(out, 0.15, tmp_path / 'wide')
    wide, usual = load_weights(tmp_path / 'wide'), load_weights(out / 'model')
    assert wide.keys() == usual.keys()
    assert any(not torch.equal(wide[k], usual[k]) for k in wide)
    assert '0.15' in json.loads((tmp_path / 'wide' / 'card.json').read_text())['weights']
    with pytest.raises(ModelError, match='no empty folder'):
        reconstruct_model(out, 0.15, tmp_path / 'wide')
    for folder in (out / 'model', tmp_path / 'nowhere'):
        with pytest.raises(RecipeError, match='holds no training'):
            reconstruct_model(folder, 0.15, tmp_path / 'new')


@pytest.mark.parametrize(('name', 'millions'), [('edm_digits', None), ('edm_cifar10', 55.735), ('edm_eurosat64', None), ('edm_imagenet64', 295.90)])
def test_shipped_recipes_build_the_published_networks(name: str, millions: float | None) -> None:
    from synthaug_plugins.diffusion.networks import parameter_count

    path = REPO / 'registry_configs' / 'learn' / f'{name}.py'
    done = load_learn_recipe(str(path))
    assert set(done) == set(KEYS)
    count = parameter_count(model_config(done, [str(k) for k in range(1000 if '64' in name and 'image' in name else 10)], 0.5)) / 1e6
    assert count == pytest.approx(millions, abs=0.005) if millions else count < 15
