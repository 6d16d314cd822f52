"""The few-shot study: one command from a folder to a table; shots from training images only, test images read once per run, finished runs kept."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mix import CLASSES, make_real, make_store, world  # noqa: F401

from conftest import command_line
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.clip_source import model_and_tag
from synthaug_plugins.errors import DataError, RecipeError, StoreError
from synthaug_plugins.evaluation.fewshot import study as study_module
from synthaug_plugins.evaluation.fewshot import tuning as tuning_module
from synthaug_plugins.evaluation.fewshot.baselines import BASELINES
from synthaug_plugins.evaluation.fewshot.cross_modal import cross_modal
from synthaug_plugins.evaluation.fewshot.study import study
from synthaug_plugins.evaluation.fewshot.tuning import HEAD, METHODS, Setting, chain_key, stages
from synthaug_plugins.few_shot import draw_shots
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.store.scores import write_scores

MODEL = 'embedded:digits_clip'


class InThisProcess:
    """In place of the pool of processes, which tests of its own cover: starting them costs more than these runs."""

    def __init__(self, jobs: int, setup: Callable[[], object] | None = None) -> None:
        self.calls: list[str] = []

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, tasks: Any, progress: Callable[[str, dict[str, Any]], None]) -> None:
        for task in tasks:
            progress(task.label, task.function(*task.arguments))


@pytest.fixture(autouse=True, scope='module')
def _cross_modal_adaptation_is_short() -> Iterator[None]:
    """Its 1,600 steps are most of a study here, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BASELINES, 'cross_modal', partial(cross_modal, steps=20))
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/train, data/test, and a store of images from nothing with a teacher's logits."""
    import pyarrow as pa

    root = tmp_path_factory.mktemp('study')
    make_real(root / 'data' / 'train')
    make_real(root / 'data' / 'test', per_class=6, first=20)
    store = make_store(root / 'store', per_class=8, sources=None)
    index = store.index()
    logits = np.where(np.arange(4) == index['label'].to_numpy()[:, None], 0.0, -3.0)
    values = pa.array(logits.astype(np.float16).tolist(), pa.list_(pa.float16(), 4))
    known = dict(zip(index['id'].to_pylist(), index['sha256'].to_pylist(), strict=True))
    write_scores(store.place, 'teacher', pa.table({'id': index['id'], 'teacher_logits': values}), known, set())
    return root


@pytest.fixture(scope='module')
def made(folder: Path) -> Path:
    """A whole study by the command line: 2 shots, one seed, 4 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning_module, 'Pool', InThisProcess)
        assert command_line(*command(folder)) == 0
    return folder / 'out'


def command(folder: Path, *more: str) -> list[str]:
    words = ['fewshot', '--data', str(folder / 'data'), '--model', MODEL, '--out', str(folder / 'out'), '--store', str(folder / 'store')]
    return [*words, '--shots', '2', '--seeds', '1', '--steps', '4', '--cache', str(folder / 'cache'), *more]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_one_command_makes_table_and_curve_of_every_method(made: Path) -> None:
    results = rows(made / 'results.csv')
    baselines = {'zero_shot', 'linear_probe', 'tip_adapter', 'tip_adapter_f', 'cross_modal', 'wise_ft', 'wise_ft_mix'}
    assert {r['method'] for r in results} == baselines | set(METHODS)
    assert {r['method'] for r in results if r['shots'] == '0'} == {'zero_shot', 'tuned_synthetic', 'tuned_synthetic_sce'}
    assert (made / 'curve.png').read_bytes().startswith(b'\x89PNG')
    settings = json.loads((made / 'study.json').read_text())
    assert settings['steps'] == 4
    assert settings['command'].startswith('synthaug fewshot --data ')
    assert {r['against'] for r in rows(made / 'per_class.csv')} == {'zero_shot', 'tuned_real'}


def test_figures_are_those_of_the_heads_that_were_kept(folder: Path, made: Path) -> None:
    from safetensors.torch import load_file

    from synthaug_plugins.real_images import RealImages

    clip = ClipModel(MODEL)
    clip.load(torch.device('cpu'))
    test = RealImages(folder / 'data' / 'test')
    features = clip.encode_images([test.load(i) for name in CLASSES for i in test.ids(name)])
    labels = torch.arange(4).repeat_interleave(6)
    found = set()
    for file in made.glob(f'runs/*/{HEAD}'):
        head = load_file(file)
        found.add(round(float(100 * ((features @ head['weight'].T + head['bias']).argmax(1) == labels).double().mean()), 6))
    said = {round(float(r['top1']), 6) for r in rows(made / 'results.csv') if r['method'] in METHODS}
    assert said == found


def test_tuned_heads_take_equal_steps_and_finished_ones_are_kept(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {json.loads(p.read_text())['steps'] for p in made.glob('runs/*/result.json')} == {4}
    before = (made / 'results.csv').read_bytes()
    gone = next(made.glob('runs/*/result.json')).parent
    shutil.rmtree(gone)
    done: list[str] = []

    class Watching(InThisProcess):
        def run(self, tasks: Any, progress: Any) -> None:
            done.extend(str(task.log.parent) for task in tasks)
            super().run(tasks, progress)

    monkeypatch.setattr(tuning_module, 'Pool', Watching)
    assert command_line(*command(folder)) == 0
    assert done == [str(gone)]
    assert (made / 'results.csv').read_bytes() == before


def test_training_never_names_a_test_image_and_validation_images_are_no_shots(folder: Path) -> None:
    setting = Setting(folder / 'data', {'model': MODEL, 'cache': str(folder / 'cache')}, str(folder / 'store'), None, 4, None)
    for method in METHODS:
        for cfg in stages(method, setting, 2, 1, get_plugin_manager()):
            assert str(folder / 'data' / 'test') not in cfg.pretty_text
            assert cfg.test_dataloader is None
    drawn = draw_shots({name: [f'{name}/{i}.png' for i in range(11)] for name in CLASSES}, 2, 1)
    assert not {i for ids in drawn.train.values() for i in ids} & {i for ids in drawn.val.values() for i in ids}
    no_shots = stages('tuned_synthetic', setting, 0, 1, get_plugin_manager())[0]
    assert no_shots.val_dataloader is None  # nothing real decides which weights count
    assert 'FewShotDataset' not in no_shots.pretty_text


def test_test_features_are_read_once_per_run(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = study_module.top1

    def watched(logits: torch.Tensor, labels: torch.Tensor) -> float:
        reads.append(len(labels))
        return original(logits, labels)

    monkeypatch.setattr(study_module, 'top1', watched)
    monkeypatch.setattr(tuning_module, 'Pool', InThisProcess)
    assert command_line(*command(folder)) == 0
    assert reads == [24] * len(rows(made / 'results.csv'))


def test_without_a_store_only_methods_on_real_images_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, 'Pool', InThisProcess)
    found = study(folder / 'data', tmp_path / 'out', MODEL, get_plugin_manager(), [1], [1], steps=2, cache=str(folder / 'cache'), progress=lambda line: None)
    assert {r.method for r in found.results} & set(METHODS) == {'tuned_real'}


@pytest.mark.parametrize(
    ('options', 'error', 'said'),
    [
        ({'shots': [12]}, DataError, "'four' has 11 images, too few for 12 shots"),
        ({'shots': [1, 1]}, RecipeError, r'shots = \[1, 1\] is empty or repeats'),
        ({'seeds': []}, RecipeError, 'seeds = .* is empty'),
        ({'lr_scales': [0.0]}, RecipeError, 'lr_scales = .* are not all positive'),
        ({'steps': 1}, RecipeError, 'steps = 1 cannot be shared by two phases'),
        ({'select': 'clip_p > 0.5'}, RecipeError, 'chooses records of a store, and none is given'),
        ({'data': 'nowhere'}, DataError, 'does not exist'),
        ({'prompts': {'dataset': 'eurosat'}}, DataError, 'four'),
        ({'store': 'other'}, StoreError, 'classes'),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(folder: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str) -> None:
    if 'store' in options:
        options = {'store': make_store(tmp_path / 'other', per_class=1, sources=None, classes=CLASSES[::-1]).folder}
    given = {'data': folder / 'data', 'out': tmp_path / 'out', 'model': MODEL, 'plugin_manager': get_plugin_manager(), 'shots': [1], 'seeds': [1], **options}
    with pytest.raises(error, match=said):
        study(**given)
    assert not (tmp_path / 'out').exists()


def test_a_file_in_two_parts_and_a_folder_of_other_things_are_refused(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / 'data'
    shutil.copytree(folder / 'data', data)
    (data / 'test' / 'one' / '0.png').unlink(missing_ok=True)
    (data / 'test' / 'one' / '0.png').symlink_to(data / 'train' / 'one' / '0.png')
    given: dict[str, Any] = {'model': MODEL, 'plugin_manager': get_plugin_manager(), 'shots': [1], 'seeds': [1]}
    with pytest.raises(DataError, match='Training, validation and test images must differ'):
        study(data, tmp_path / 'out', **given)
    with pytest.raises(RecipeError, match='is not empty and not a few-shot study'):
        study(folder / 'data', data, **given)


def test_names_with_a_tag_are_split_and_folders_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'models' / 'mine').mkdir(parents=True)
    assert model_and_tag('RN50/openai') == {'model': 'RN50', 'pretrained': 'openai'}
    for whole in ('models/mine', 'embedded:digits_clip', 'hf-hub:org/name', './a/b', 'RN50'):
        assert model_and_tag(whole) == {'model': whole}


def test_validation_chooses_the_learning_rate_and_the_table_says_which(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, 'Pool', InThisProcess)
    options: dict[str, Any] = {'steps': 2, 'cache': str(folder / 'cache'), 'progress': lambda line: None}
    found = study(folder / 'data', tmp_path / 'out', MODEL, get_plugin_manager(), [2], [1], lr_scales=[1, 3000], **options)
    vals = {scale: _val(tmp_path / 'out', folder, scale) for scale in (1, 3000)}
    assert len(set(vals.values())) == 2  # far too large a rate forgets what CLIP knew
    (tuned,) = (r for r in found.results if r.method == 'tuned_real')
    assert tuned.chosen == {'lr_scale': max(vals, key=lambda scale: vals[scale])}
    assert tuned.val_top1 == max(vals.values())


def _val(out: Path, folder: Path, scale: float) -> float:
    setting = Setting(folder / 'data', {'model': MODEL, 'classes': list(CLASSES), 'cache': str(folder / 'cache'), 'device': 'cpu'}, None, None, 2, None)
    configs = stages('tuned_real', setting, 2, 1, get_plugin_manager(), scale)
    return json.loads((out / 'runs' / chain_key(configs, {}, str(ClipModel(MODEL).identity()['sha256'])) / 'result.json').read_text())['val']


def variants_study(tmp_path: Path, sources: int = 11) -> tuple[Path, Setting]:
    """data/ and a store of variants of its training images."""
    make_real(tmp_path / 'data' / 'train')
    make_real(tmp_path / 'data' / 'test', per_class=6, first=20)
    make_store(tmp_path / 'store', sources=sources)
    options = {'model': MODEL, 'cache': str(tmp_path / 'cache')}
    return tmp_path / 'data', Setting(tmp_path / 'data', options, str(tmp_path / 'store'), None, 4, None, variants=True)


@pytest.mark.parametrize('method', ['synthetic_then_real', 'real_then_synthetic', 'tuned_mix'])
def test_no_method_trains_on_variants_of_images_that_are_not_its_shots(tmp_path: Path, method: str) -> None:
    from mmengine.registry import DATASETS, init_default_scope

    from synthaug_plugins.store.store import Store

    _, setting = variants_study(tmp_path)
    index = Store.open(tmp_path / 'store').index()
    source_of = {
        f'{int(o)}+{int(n)}@{int(s)}': source for o, n, s, source in zip(*(index[c].to_pylist() for c in ('offset', 'size', 'shard', 'source')), strict=True)
    }
    shots = draw_shots({name: [f'{name}/{i}.png' for i in range(11)] for name in CLASSES}, 2, 1).train
    init_default_scope('mmpretrain')
    seen = set()
    for cfg in stages(method, setting, 2, 1, get_plugin_manager()):
        inner = DATASETS.build(cfg.train_dataloader.dataset.dataset)
        n = inner.offset + sum(map(len, inner.records)) if method == 'tuned_mix' else len(inner)
        for path in (inner.get_data_info(i)['img_path'] for i in range(n)):
            if path.startswith('synthaug://'):
                shard, _, place = path.rpartition('#')
                place = place.partition('@')[0]  # what follows tells whether the shard is still the one that was indexed
                seen.add(source_of[f'{place}@{int(Path(shard).stem)}'])
    assert seen == {i for ids in shots.values() for i in ids}


def test_variants_of_real_images_are_never_shown_as_training_without_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, 'Pool', InThisProcess)
    data, _ = variants_study(tmp_path)
    lines: list[str] = []
    found = study(
        data,
        tmp_path / 'out',
        MODEL,
        get_plugin_manager(),
        [2],
        [1],
        tmp_path / 'store',
        steps=2,
        val_shots=1,
        cache=str(tmp_path / 'c'),
        progress=lines.append,
    )
    methods = {r.method for r in found.results}
    assert {'tuned_mix', 'synthetic_then_real'} <= methods
    assert 'tuned_synthetic' not in methods
    assert '--val-shots 1' in json.loads((tmp_path / 'out' / 'study.json').read_text())['command']


def test_a_store_without_variants_of_the_shots_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data, _ = variants_study(tmp_path, sources=1)
    with pytest.raises(DataError, match='holds no variant of the shots of'):
        study(data, tmp_path / 'out', MODEL, get_plugin_manager(), [1], [1, 2, 3], tmp_path / 'store')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('options', 'error', 'said'),
    [
        ({'device': 'foo'}, RecipeError, '--device foo'),
        ({'device': 'cuda:99'}, RecipeError, '--device cuda:99'),
        ({'val_shots': 0}, DataError, 'is left to validate on'),
        ({'shots': [11]}, DataError, 'is left to validate on'),
        ({'out': 'data/train/runs'}, RecipeError, 'would become a class'),
    ],
)
def test_a_study_that_cannot_work_is_refused_before_weights_load(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(ClipModel, 'load', None)
    out = folder / options.pop('out') if 'out' in options else tmp_path / 'out'
    given: dict[str, Any] = {'shots': [1], 'seeds': [1], **options}
    with pytest.raises(error, match=said):
        study(folder / 'data', out, MODEL, get_plugin_manager(), **given)
    assert not out.exists()


def test_another_clip_of_the_same_name_is_another_run(folder: Path) -> None:
    setting = Setting(folder / 'data', {'model': MODEL, 'cache': str(folder / 'cache')}, None, None, 4, None)
    configs = stages('tuned_real', setting, 2, 1, get_plugin_manager())
    assert chain_key(configs, {}, 'a') != chain_key(configs, {}, 'b')
    assert chain_key(configs, {}, 'a') == chain_key(configs, {}, 'a')
