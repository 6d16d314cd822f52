"""Soft labels from a teacher: recorded beside the image, softened at training, and the loss of He et al. exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_mix import CLASSES, digit_images, loader, make_store, recipe, run, world  # noqa: F401
from torch.nn.functional import cross_entropy, log_softmax, softmax

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.teacher import SoftLabels
from synthaug_plugins.engine.score import score
from synthaug_plugins.errors import ModelError, RecipeError, StoreError, SynthAugError
from synthaug_plugins.mixing.soft_labels import check_soft_labels, read_soft_targets
from synthaug_plugins.store.plan import Request
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.verify import verify

from mmengine.registry import MODELS, init_default_scope  # isort: skip

open_clip = pytest.importorskip('open_clip')
SCE = {'column': 'teacher_logits', 'blend': 0.5, 'temperature': 2.0}


@pytest.fixture(scope='session')
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder in open_clip's layout with random weights, lively enough that classes differ."""
    return save_clip(tmp_path_factory.mktemp('clip') / 'a', 0)


def save_clip(folder: Path, seed: int) -> Path:
    from safetensors.torch import save_file

    config = {
        'embed_dim': 16,
        'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 64, 'patch_size': 8},
        'text_cfg': {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1},
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(100))
        model.token_embedding.weight.mul_(50)
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config, 'preprocess_cfg': {}}))
    return folder


def teacher(clip: Path, **options: Any) -> SoftLabels:
    made = SoftLabels(str(clip), **options)
    made.check(CLASSES, None)
    made.setup(torch.device('cpu'), CLASSES, None)
    return made


def shown() -> tuple[list[Request], list[np.ndarray]]:
    images = [image for name in CLASSES for image in digit_images(name, 3)]
    return [Request(f'{i}', i // 3, CLASSES[i // 3], i) for i in range(len(images))], images


# --- the inspector


def test_the_teacher_is_the_zero_shot_head_and_rejects_nothing(clip: Path) -> None:
    requests, images = shown()
    verdicts = teacher(clip).inspect(requests, images)
    assert verdicts.reasons == [None] * len(images)
    model = ClipModel(str(clip))
    model.load(torch.device('cpu'))
    texts = torch.stack([model.encode_texts([f'a photo of a {name}'])[0] for name in CLASSES])
    expected = (100 * model.encode_images(images) @ texts.T).numpy()
    stored = verdicts.scores['teacher_logits']
    assert stored.dtype == np.float16
    assert stored.shape == (12, 4)
    assert (stored.max(1) == 0).all()
    assert np.allclose(stored, expected - expected.max(1, keepdims=True), rtol=2**-11, atol=1e-4)
    # What half precision costs, in probability: nothing that matters, even at T = 1 and logits near 100.
    assert np.abs(softmax(torch.tensor(stored).double(), 1) - softmax(torch.tensor(expected).double(), 1)).max() < 2e-3


def test_the_largest_logits_come_with_their_classes_largest_first(clip: Path) -> None:
    requests, images = shown()
    every = teacher(clip).inspect(requests, images).scores['teacher_logits']
    some = teacher(clip, top_k=2).inspect(requests, images).scores
    assert some['teacher_classes'].dtype == np.int16
    assert np.array_equal(some['teacher_classes'], np.argsort(-every.astype(float), 1, kind='stable')[:, :2])
    assert np.array_equal(some['teacher_logits'], -np.sort(-every, 1)[:, :2])
    for k in (4, 9):
        assert teacher(clip, top_k=k).inspect(requests, images).scores.keys() == {'teacher_logits'}


def test_identity_follows_the_weights_not_the_name(clip: Path, tmp_path: Path) -> None:
    same, other = save_clip(tmp_path / 'b', 0), save_clip(tmp_path / 'c', 1)

    def sha256(folder: Path, **options: Any) -> str:
        return teacher(folder, **options).identity()['model']['sha256']

    assert sha256(clip) == sha256(same) != sha256(other)
    assert teacher(clip).identity() != teacher(clip, top_k=2).identity()
    assert teacher(clip).identity() != teacher(clip, templates='a drawing of a {}').identity()


@pytest.mark.parametrize('top_k', [0, -1, 2.5, True, '3'])
def test_a_top_k_that_is_no_count_is_refused(clip: Path, top_k: Any) -> None:
    with pytest.raises(RecipeError, match='top_k'):
        SoftLabels(str(clip), top_k=top_k)


def test_a_teacher_that_cannot_teach_is_refused_before_weights_load(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='1 classes'):
        SoftLabels(str(clip)).check(['one'], None)
    with pytest.raises(ModelError):
        SoftLabels(str(tmp_path / 'absent')).check(CLASSES, None)


# --- from the store to the loss


@pytest.fixture(scope='module')
def scored(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the logits of a teacher, and of its two largest under another name."""
    folder = tmp_path_factory.mktemp('soft') / 'store'
    make_store(folder, per_class=9, sources=None)
    for name, options, prefix in (('soft', {}, ''), ('few', {'top_k': 2}, 'few_')):
        score(
            folder,
            {'inspectors': [{'type': 'SoftLabels', 'model': str(clip), **options}], 'data': None, 'batch_size': 16},
            name,
            'cpu',
            prefix=prefix,
            quiet=True,
        )
    return folder


def soft(logits: Any, temperature: float) -> np.ndarray:
    return softmax(torch.tensor(np.asarray(logits, np.float64)) / temperature, -1).numpy()


def test_the_store_says_who_taught(scored: Path, clip: Path) -> None:
    store = Store.open(scored)
    made_by: Any = store.scores_made_by('soft')
    assert made_by['inspectors'][0]['type'] == 'SoftLabels'
    assert made_by['inspectors'][0]['model']['sha256'] == ClipModel(str(clip)).identity()['sha256']
    assert verify(store) == []
    assert store.index().schema.field('teacher_logits').type.value_type == pa.float16()
    assert store.index().schema.field('few_teacher_classes').type.value_type == pa.int16()
    assert select(store, 'teacher_logits[1] = 0', allow_empty=True).table.num_rows < len(store.index())


def test_temperature_and_blend_act_at_training(scored: Path, world: Path) -> None:  # noqa: F811
    logits = {r['id']: r['teacher_logits'] for r in Store.open(scored).index().to_pylist()}
    synthetic = 0
    for batch in loader(recipe(world, mix={'store': str(scored), 'alpha': 0.5, 'soft_labels': SCE})):
        for sample in batch['data_samples']:
            expected = np.eye(4)[int(sample.gt_label)]
            if sample.is_synthetic:
                expected = 0.5 * expected + 0.5 * soft(logits[sample.synthetic_id], 2.0)
                synthetic += 1
            assert np.allclose(sample.gt_score.numpy(), expected, atol=1e-6)
    assert 0 < synthetic < 44


def test_classes_beyond_the_largest_logits_have_no_probability(scored: Path, world: Path) -> None:  # noqa: F811
    rows = {r['id']: r for r in Store.open(scored).index().to_pylist()}
    cfg = recipe(world, mix={'store': str(scored), 'alpha': 1.0, 'soft_labels': {'column': 'few_teacher_logits', 'temperature': 3.0}})
    for batch in loader(cfg):
        for sample in batch['data_samples']:
            row, expected = rows[sample.synthetic_id], np.zeros(4)
            expected[row['few_teacher_classes']] = soft(row['few_teacher_logits'], 3.0)
            assert np.allclose(sample.gt_score.numpy(), expected, atol=1e-6)


def test_the_blended_target_is_the_sce_loss_of_he_et_al(scored: Path, world: Path) -> None:  # noqa: F811
    """L = (1 - lambda) CE(z, y) + lambda (-sum_k softmax(z_T / T)_k log softmax(z)_k) for synthetic samples, CE(z, y) for real ones."""
    init_default_scope('mmpretrain')
    head = MODELS.build({'type': 'LinearClsHead', 'num_classes': 4, 'in_channels': 8})
    logits_of = {r['id']: r['teacher_logits'] for r in Store.open(scored).index().to_pylist()}
    for blend, temperature in ((0.5, 2.0), (0.3, 1.0), (1.0, 5.0), (0.0, 2.0)):
        options = {'column': 'teacher_logits', 'blend': blend, 'temperature': temperature}
        batch = next(iter(loader(recipe(world, mix={'store': str(scored), 'mode': 'per_batch', 'soft_labels': options}))))['data_samples']
        assert {s.is_synthetic for s in batch} == {True, False}
        features = torch.randn(len(batch), 8)
        z, expected = head((features,)), 0.0
        for i, sample in enumerate(batch):
            hard = cross_entropy(z[i : i + 1].double(), sample.gt_label)
            if sample.is_synthetic:
                teacher_p = softmax(torch.tensor(logits_of[sample.synthetic_id]).double() / temperature, 0)
                expected += ((1 - blend) * hard - blend * (teacher_p * log_softmax(z[i].double(), 0)).sum()).item()
            else:
                expected += hard.item()
        assert head.loss((features,), batch)['loss'].item() == pytest.approx(expected / len(batch), rel=1e-5)


def test_training_on_soft_labels_runs_in_every_mode(scored: Path, world: Path, tmp_path: Path) -> None:  # noqa: F811
    for number, mode in enumerate(({'alpha': 0.5}, {'mode': 'two_stream', 'synthetic_weight': 0.5}, {'mode': 'concat'})):
        losses = run(recipe(world, mix={'store': str(scored), 'soft_labels': SCE, **mode}), tmp_path / str(number)).losses
        assert len(losses) >= 12
        assert np.isfinite(losses).all()


def test_a_teacher_of_other_classes_or_another_order_never_trains(clip: Path, world: Path, tmp_path: Path) -> None:  # noqa: F811
    make_store(tmp_path / 'turned', per_class=4, sources=None, classes=CLASSES[::-1])
    score(tmp_path / 'turned', {'inspectors': [{'type': 'SoftLabels', 'model': str(clip)}], 'data': None, 'batch_size': 16}, 'soft', 'cpu', quiet=True)
    with pytest.raises(StoreError, match='class order differs'):
        loader(recipe(world, mix={'store': str(tmp_path / 'turned'), 'soft_labels': SCE}))


# --- what is refused


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'temperature': 0}, 'temperature = 0 is not a positive number'),
        ({'temperature': -1.0}, 'temperature = -1.0'),
        ({'temperature': float('nan')}, 'temperature = nan'),
        ({'temperature': float('inf')}, 'temperature = inf'),
        ({'temperature': True}, 'temperature = True'),
        ({'temperature': '2'}, "temperature = '2'"),
        ({'temprature': 2}, "no key 'temprature'. Did you mean 'temperature'"),
        ({'column': 'teacher_logit'}, "no column 'teacher_logit'. Did you mean 'teacher_logits'"),
        ({'temperature': None}, "'teacher_logits' are not probabilities that sum to 1. .* add temperature"),
    ],
)
def test_wrong_options_are_refused(scored: Path, world: Path, options: dict[str, Any], text: str) -> None:  # noqa: F811
    with pytest.raises(SynthAugError, match=text) as caught:
        loader(recipe(world, mix={'store': str(scored), 'soft_labels': {**SCE, **options}}))
    assert caught.value.cure


LOGITS = pa.list_(pa.float16())
LABELS = pa.list_(pa.int16())


def column(values: Callable[[int], Any], kind: pa.DataType) -> pa.Array:
    made = [values(i) for i in range(6)]
    return pa.array([None if v is None else np.array(v, kind.value_type.to_pandas_dtype()) for v in made], kind)


@pytest.mark.parametrize(
    ('columns', 'text'),
    [
        ({'t_logits': column(lambda i: [1, float('nan') if i == 4 else 0, 2, 3], LOGITS)}, "'t_logits' holds logits that are not finite"),
        ({'t_logits': column(lambda i: [1, float('-inf'), 2, 3], LOGITS)}, 'not finite'),
        ({'t_logits': column(lambda i: None if i == 2 else [1, 2, 3, 4], LOGITS)}, "1 selected records have no 't_logits'"),
        ({'t_logits': column(lambda i: [2, 1], LOGITS)}, "do not all have 4 entries.* their labels must stand in 't_classes'"),
        ({'t_logits': column(lambda i: [2, 1], LOGITS), 't_classes': column(lambda i: [0, 4], LABELS)}, 'labels outside the 4 classes'),
        ({'t_logits': column(lambda i: [2, 1], LOGITS), 't_classes': column(lambda i: [-1, 2], LABELS)}, 'labels outside the 4 classes'),
        ({'t_logits': column(lambda i: [2, 1], LOGITS), 't_classes': column(lambda i: [3, 3], LABELS)}, 'names a class twice'),
        ({'t_logits': column(lambda i: [2, 1], LOGITS), 't_classes': column(lambda i: [3, 1, 0], LABELS)}, 'one label per logit'),
        ({'t_logits': column(lambda i: [2, 1], LOGITS), 't_classes': column(lambda i: [3, 1], LOGITS)}, 'one label per logit'),
        ({'t_logits': column(lambda i: [2, 1][: 1 + i % 2], LOGITS), 't_classes': column(lambda i: [3, 1], LABELS)}, 'do not all have as many entries'),
        ({'t_logits': column(lambda i: [2, 1], LOGITS), 't_classes': column(lambda i: None, LABELS)}, "6 selected records have no 't_classes'"),
        ({'t_logits': column(lambda i: [0.25, 0.25, 0.5, 0], LOGITS)}, "'t_logits' holds probabilities, and temperature divides logits"),
        ({'t_logits': pa.array([1.0] * 6)}, "'t_logits' holds double, not lists"),
    ],
)
def test_columns_that_are_no_logits_are_refused(columns: dict[str, pa.Array], text: str) -> None:
    options: Any = check_soft_labels({'column': 't_logits', 'temperature': 2.0})
    with pytest.raises(RecipeError, match=text) as caught:
        read_soft_targets(pa.table(columns), options, 4)
    assert caught.value.cure


def test_probabilities_keep_working_without_temperature() -> None:
    options: Any = check_soft_labels({'column': 'p', 'blend': 0.5})
    targets = read_soft_targets(pa.table({'p': column(lambda i: [0.5, 0.25, 0.25, 0], LOGITS)}), options, 4)
    assert targets.of(3).tolist() == [0.5, 0.25, 0.25, 0]
    assert targets.take(np.array([4, 0, 2])).values.shape == (3, 4)
    for none in (options, check_soft_labels({'column': 'p', 'temperature': 2.0})):
        assert read_soft_targets(pa.table({'p': pa.array([], LOGITS)}), none, 4).values.shape == (0, 4)


def test_extreme_logits_and_temperatures_stay_finite() -> None:
    for temperature in (1e-3, 1.0, 1e6):
        options: Any = check_soft_labels({'column': 't', 'temperature': temperature})
        targets = read_soft_targets(pa.table({'t': column(lambda i: [-60000, 60000, 100, 0], LOGITS)}), options, 4)
        assert np.isfinite(targets.values).all()
        assert targets.values.sum(1) == pytest.approx(np.ones(6))
        assert targets.values[0].argmax() == 1
