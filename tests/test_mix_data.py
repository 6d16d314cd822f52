"""What may be drawn, in which form it reaches the trainer, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_mix import CLASSES, PER_CLASS, digit_images, epochs, loader, log, make_real, make_store, recipe, run, world  # noqa: F401

from synthaug_plugins.errors import DataError, RecipeError, StoreError, SynthAugError
from synthaug_plugins.plugins import get_plugin_manager
from synthaug_plugins.store.store import Store
from synthaug_plugins.training.run import configure

from mmengine.config import Config  # isort: skip
from mmengine.registry import DATASETS, TRANSFORMS  # isort: skip
from mmpretrain.datasets import BaseDataset  # isort: skip


@DATASETS.register_module(force=True)
class DigitsInMemory(BaseDataset):
    """Digits as arrays, the way MMPretrain's CIFAR10 and MNIST hold their images."""

    METAINFO = {'classes': CLASSES}

    def __init__(self, shape: tuple[int, ...] = (16, 16, 3), **kwargs: Any) -> None:
        self.shape = tuple(shape)
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        side = self.shape[0]
        images = [(label, image[:side, :side]) for label, name in enumerate(CLASSES) for image in digit_images(name, 4)]
        return [{'img': image if len(self.shape) == 3 else image[..., 0], 'gt_label': label} for label, image in images]


def in_memory(base: Path, shape: tuple[int, ...] = (16, 16, 3), **mix: Any) -> Config:
    cfg = recipe(base, mix=mix)
    cfg.train_dataloader.dataset = {'type': 'DigitsInMemory', 'shape': shape, 'pipeline': [{'type': 'PackInputs'}]}
    return cfg


# --- what may be drawn


def test_variants_of_images_outside_the_training_set_are_left_out_and_counted(tmp_path: Path, world: Path, log: list[str]) -> None:  # noqa: F811
    few = make_real(tmp_path / 'few', per_class=3)  # a few-shot subset; the store has variants of all 11
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'alpha': 1})
    cfg.train_dataloader.dataset.data_root = str(few)
    drawn = {m[1] for batch in epochs(cfg, 20) for m in batch}
    sources = {r['id']: r['source'] for r in Store.open(world / 'variants').index().to_pylist()}
    assert {sources[i] for i in drawn} == {f'{name}/{i}.png' for name in CLASSES for i in range(3)}
    assert any('64 of 88 records left out' in line for line in log)
    cfg.synthaug.mix.sources = 'any'
    assert {sources[m[1]] for batch in epochs(cfg, 20) for m in batch} > {sources[i] for i in drawn}


def test_a_store_made_from_other_images_is_refused(tmp_path: Path, world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants')})
    nested = make_real(tmp_path / 'nested' / 'deeper', per_class=3)
    cfg.train_dataloader.dataset.data_root = str(nested.parent)
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_text(''.join(f'deeper/{name}/{i}.png {label}\n' for label, name in enumerate(CLASSES) for i in range(3)))
    cfg.train_dataloader.dataset.metainfo = {'classes': list(CLASSES)}
    with pytest.raises(DataError, match='None of the 88 selected records'):
        loader(cfg)
    cfg.synthaug.mix.source_root = str(nested)
    assert len(loader(cfg).dataset.records[0]) == 24


def store_from(base: Path, folder: Path, data: Path | str) -> Path:
    """A copy of the store of variants that says it was made from `data`."""
    shutil.copytree(base / 'variants', folder)
    card = json.loads((folder / 'store.json').read_text())
    card['made_by'] = {'recipe': {'data': str(data)}}
    (folder / 'store.json').write_text(json.dumps(card))
    return folder


def test_a_store_made_from_validation_images_of_the_same_names_is_refused(tmp_path: Path, world: Path) -> None:  # noqa: F811
    held_out = make_real(tmp_path / 'val', first=40)  # four/0.png and so on, other digits
    cfg = recipe(world, mix={'store': str(store_from(world, tmp_path / 'leak', held_out))})
    with pytest.raises(DataError, match=rf"was made from the images in '{held_out}', and '\w+/\d+\.png' there is another image than the real '{world}/train/"):
        loader(cfg)
    for vouched in ({'sources': 'any'}, {'source_root': str(world / 'train')}):
        cfg.synthaug.mix.update(vouched)
        assert len(loader(cfg).dataset.records[0]) == 88
        del cfg.synthaug.mix[next(iter(vouched))]


def test_a_store_made_from_the_training_images_or_a_copy_or_a_folder_that_is_gone_is_admitted(
    tmp_path: Path,
    world: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(world)
    copied = Path(shutil.copytree(world / 'train', tmp_path / 'copy'))
    for number, data in enumerate([world / 'train', 'train', copied, '/nowhere/at/all', '']):
        cfg = recipe(world, mix={'store': str(store_from(world, tmp_path / f'store{number}', data))})
        assert len(loader(cfg).dataset.records[0]) == 88
    cfg = recipe(world, mix={'store': str(tmp_path / 'store0')})  # of two real images of one name, one is the source
    inner = cfg.train_dataloader.dataset
    more = make_real(tmp_path / 'more', first=40)
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [{**inner, 'data_root': str(root)} for root in (more, world / 'train')]}
    assert len(loader(cfg).dataset.records[0]) == 88


def test_images_from_nothing_need_no_source(world: Path) -> None:  # noqa: F811
    assert len(loader(recipe(world, mix={'store': str(world / 'free')})).dataset.records[0]) == 36
    with pytest.raises(RecipeError, match='none of the 44 real images has variants'):
        loader(recipe(world, mix={'store': str(world / 'free'), 'partner': 'source'}))


def test_another_class_order_is_refused(tmp_path: Path, world: Path) -> None:  # noqa: F811
    make_store(tmp_path / 'turned', per_class=2, sources=None, classes=CLASSES[::-1])
    with pytest.raises(StoreError, match='order'):
        loader(recipe(world, mix={'store': str(tmp_path / 'turned')}))


def test_select_decides_what_is_drawn(world: Path, log: list[str]) -> None:  # noqa: F811
    whole = Store.open(world / 'variants').index().to_pylist()
    wanted = {r['id'] for r in whole if r['clip_p'] >= 0.5}
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'alpha': 1, 'select': 'clip_p >= 0.5'})
    assert {m[1] for batch in epochs(cfg, 20) for m in batch} == wanted
    assert any(f'{len(wanted)} of 88 images' in line for line in log)
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'select': {'top_k': 2, 'by': 'clip_p'}})
    assert len(loader(cfg).dataset.records[0]) == 2 * len(CLASSES)


# --- in which form it arrives


def test_synthetic_pixels_are_those_of_the_store_in_every_kind_of_dataset(world: Path) -> None:  # noqa: F811
    from PIL import Image

    from synthaug_plugins.store.reader import StoreReader

    rows = {r['id']: r for r in Store.open(world / 'free').index().to_pylist()}

    def stored(name: str) -> np.ndarray:
        import io

        row = rows[name]
        return np.asarray(Image.open(io.BytesIO(StoreReader(world / 'free').read(row['shard'], row['offset'], row['size']))))

    mix = {'store': str(world / 'free'), 'alpha': 1}
    files = recipe(world, mix=mix)
    files.train_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]
    for cfg in (files, in_memory(world, **mix), in_memory(world, (16, 16), **mix), in_memory(world, (8, 8, 3), **mix)):
        batch = next(iter(loader(cfg)))
        for pixels, sample in zip(batch['inputs'].permute(0, 2, 3, 1).numpy(), batch['data_samples'], strict=True):
            expected = stored(sample.synthetic_id)
            if pixels.shape[0] == 8:
                expected = np.asarray(Image.fromarray(expected).resize((8, 8), Image.Resampling.BOX))
            assert np.abs(pixels.astype(int) - expected[..., : pixels.shape[-1]]).max() <= 1


def test_channel_order_of_images_in_memory_follows_the_preprocessor(tmp_path: Path, world: Path) -> None:  # noqa: F811
    cfg = in_memory(world, store=str(world / 'free'))
    assert configure(cfg, get_plugin_manager()).train_dataloader.dataset.channel_order == 'bgr'
    cfg.data_preprocessor.to_rgb = False
    assert 'channel_order' not in configure(cfg, get_plugin_manager()).train_dataloader.dataset


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'KFoldDataset', 'ClassBalancedDataset', 'ConcatDataset'])
def test_wrapped_datasets_are_mixed_like_bare_ones(world: Path, wrapper: str) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'alpha': 1, 'partner': 'source'})
    inner = cfg.train_dataloader.dataset
    options: dict[str, Any] = {
        'RepeatDataset': {'times': 2},
        'KFoldDataset': {'fold': 0, 'num_splits': 4},
        'ClassBalancedDataset': {'oversample_thr': 0.5},
        'ConcatDataset': {},
    }
    content = {'datasets': [inner, inner]} if wrapper == 'ConcatDataset' else {'dataset': inner}
    cfg.train_dataloader.dataset = {'type': wrapper, **content, **options[wrapper]}
    rows = [m for batch in epochs(cfg) for m in batch]
    expected = {'RepeatDataset': 88, 'KFoldDataset': 33, 'ConcatDataset': 88}
    assert all(m[0] for m in rows)
    assert len(rows) == expected.get(wrapper, len(rows))
    if wrapper == 'KFoldDataset':  # the fold that is held out gives no variants either
        assert len(loader(cfg).dataset.records[0]) == 66


class WithoutRepr:
    """A user's transform as short as can be: its repr holds its address."""

    def __init__(self, option: int = 0) -> None:
        self.option = option

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return results


TRANSFORMS.register_module(module=WithoutRepr, force=True)


def test_parts_with_equal_pipelines_are_mixed_whatever_their_transforms_print(world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants')})
    inner = cfg.train_dataloader.dataset
    inner.pipeline.insert(1, {'type': 'WithoutRepr'})
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [inner, copy.deepcopy(inner)]}
    assert sum(len(batch) for batch in epochs(cfg)) == 88
    cfg.train_dataloader.dataset.datasets[1].pipeline[1].option = 1
    with pytest.raises(RecipeError, match='have different pipelines'):
        loader(cfg)


def test_a_recipe_that_names_the_local_disk_as_file_backend_reads_the_store(world: Path, tmp_path: Path) -> None:  # noqa: F811
    late = [{'type': 'LoadImageFromFile', 'backend_args': {'backend': 'local'}}, {'type': 'PackInputs'}]
    for options in ({'backend_args': {'backend': 'local'}}, {'file_client_args': {'backend': 'disk'}}, {'backend_args': None}):
        for feature in ({'mix': {'store': str(world / 'variants')}}, {'transform': {'store': str(world / 'variants'), 'root': str(world / 'train')}}):
            cfg = recipe(world, **feature)
            cfg.train_dataloader.dataset.pipeline[0].update(options)
            if 'mix' in feature and options['backend_args' if 'backend_args' in options else 'file_client_args']:
                cfg.custom_hooks.append({'type': 'SwitchRecipeHook', 'schedule': [{'action_epoch': 2, 'train_pipeline': late}]})
                assert len(run(cfg, tmp_path / next(iter(options))).losses) == 12
            else:
                assert sum(len(batch['data_samples']) for batch in loader(cfg)) == 44


def test_other_file_backends_are_refused(world: Path) -> None:  # noqa: F811
    other = {'backend_args': {'backend': 'petrel', 'enable_mc': False}}
    for feature in ({'mix': {'store': str(world / 'variants')}}, {'transform': {'store': str(world / 'variants'), 'root': str(world / 'train')}}):
        cfg = recipe(world, **feature)
        cfg.train_dataloader.dataset.pipeline[0].update(other)
        with pytest.raises(RecipeError, match=r'LoadImageFromFile reads through backend_args = .*petrel'):
            configure(cfg, get_plugin_manager())
    explicit = configure(recipe(world, mix={'store': str(world / 'variants')}), get_plugin_manager())  # a recipe without our plugins
    explicit.train_dataloader.dataset.real.pipeline[0].backend_args = {'backend': 'local'}
    with pytest.raises(RecipeError, match='LoadImageFromFile reads through backend_args'):
        loader(explicit)


def test_a_pipeline_switched_in_training_switches_for_synthetic_images_too(world: Path, tmp_path: Path) -> None:  # noqa: F811
    for workers in (0, 1):
        cfg = recipe(world, workers=workers, mix={'store': str(world / 'variants'), 'alpha': 0.5})
        late = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': 24}, {'type': 'PackInputs'}]
        cfg.custom_hooks.append({'type': 'SwitchRecipeHook', 'schedule': [{'action_epoch': 2, 'train_pipeline': late}]})
        cfg.custom_hooks.append({'type': 'ShapeRecorder'})
        recorder = run(cfg, tmp_path / f'run{workers}')
        shapes = next(h for h in recorder.runner.hooks if type(h).__name__ == 'ShapeRecorder').shapes
        assert shapes == [(16, 16)] * 6 + [(24, 24)] * 6
        assert {m[0] for batch in recorder.batches[6:] for m in batch} == {True, False}


def test_two_views_of_a_self_supervised_recipe_carry_the_flags(world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'alpha': 0.5, 'partner': 'any'})
    views = {'type': 'MultiView', 'num_views': 2, 'transforms': [[{'type': 'RandomFlip', 'prob': 0.5}]]}
    cfg.train_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}, views, {'type': 'PackInputs'}]
    cfg.train_dataloader.dataset.with_label = False
    batch = next(iter(loader(cfg)))
    assert [tuple(view.shape) for view in batch['inputs']] == [(8, 3, 16, 16)] * 2
    assert {s.is_synthetic for s in batch['data_samples']} == {True, False}


def test_pseudo_collate_and_spawned_workers_work_too(world: Path) -> None:  # noqa: F811
    """What a spawned worker is given is pickled and used in a process that has loaded none of our code."""
    mix = {'store': str(world / 'variants'), 'alpha': 0.5}
    expected = epochs(recipe(world, mix=mix))
    cfg = recipe(world, workers=1, mix=mix)
    cfg.train_dataloader.collate_fn = {'type': 'pseudo_collate'}
    assert epochs(cfg) == expected
    cfg.train_dataloader.multiprocessing_context = 'spawn'
    assert epochs(cfg) == expected


def test_num_batch_per_epoch_still_shortens_an_epoch(world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants')})
    cfg.train_dataloader.num_batch_per_epoch = 2
    assert [len(batch) for batch in epochs(cfg)] == [8, 8]


def test_drop_last_and_shuffle_move_to_the_batch_sampler(world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'mode': 'per_batch'})
    cfg.train_dataloader.drop_last = True
    assert [len(batch) for batch in epochs(cfg)] == [8] * 5


# --- soft labels


def soft_store(folder: Path, values: Callable[[int], list[float] | None]) -> Path:
    store = make_store(folder, per_class=9, sources=None)
    table = store.index().select(['id', 'label'])
    column = pa.array([values(label) for label in table['label'].to_pylist()], pa.list_(pa.float32()))
    store.add_scores('soft', table.select(['id']).append_column('clip_probs', column))
    return folder


def test_soft_labels_reach_every_sample_and_the_loss(tmp_path: Path, world: Path) -> None:  # noqa: F811
    folder = soft_store(tmp_path / 'soft', lambda label: [0.7 if k == label else 0.1 for k in range(4)])
    cfg = recipe(world, mix={'store': str(folder), 'alpha': 0.5, 'soft_labels': {'column': 'clip_probs', 'blend': 0.5}})
    for batch in loader(cfg):
        for sample in batch['data_samples']:
            top = 0.85 if sample.is_synthetic else 1.0
            expected = np.full(4, (1 - top) / 3, np.float32)
            expected[int(sample.gt_label)] = top
            assert np.allclose(sample.gt_score.numpy(), expected)
    losses = run(cfg, tmp_path / 'run').losses
    assert len(losses) == 12
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        (lambda label: [0.7, 0.1, 0.1], 'do not all have 4 entries'),
        (lambda label: [0.7, 0.1, 0.1, 0.4], 'not probabilities'),
        (lambda label: None if label == 2 else [1.0, 0.0, 0.0, 0.0], "9 selected records have no 'clip_probs'"),
    ],
)
def test_soft_labels_that_are_none_are_refused(tmp_path: Path, world: Path, values: Callable[[int], Any], text: str) -> None:  # noqa: F811
    folder = soft_store(tmp_path / 'soft', values)
    with pytest.raises(RecipeError, match=text):
        loader(recipe(world, mix={'store': str(folder), 'soft_labels': {'column': 'clip_probs'}}))


# --- what is refused


BAD = [
    ({'alpha': 1.5}, 'alpha = 1.5 is not a share'),
    ({'alpha': -0.1}, 'alpha = -0.1'),
    ({'alpha': True}, 'alpha = True'),
    ({'alpha': [(1, 0.5)]}, 'do not start at 0'),
    ({'alpha': [0.5]}, 'not a list of'),
    ({'alpha': {'start': 0, 'end': 1}}, 'alpha lacks end_epoch'),
    ({'alpha': {'start': 0, 'end': 1, 'end_epoch': 3, 'shape': 'cosin'}}, "Did you mean 'cosine'"),
    ({'alpha': {'start': 0, 'end': 1, 'end_epoch': 0}}, 'does not come after'),
    ({'mode': 'per_sampel'}, "Did you mean 'per_sample'"),
    ({'partner': 'sorce'}, "Did you mean 'source'"),
    ({'mode': 'per_batch', 'alpha': 0.5}, "alpha has no meaning in mode 'per_batch'"),
    ({'ratio': (1, 1)}, "ratio has no meaning in mode 'per_sample'"),
    ({'mode': 'concat', 'partner': 'any'}, 'partner has no meaning'),
    ({'mode': 'per_batch', 'ratio': (2, 1)}, r'ratio = \(2, 1\) does not divide a batch of 8'),
    ({'mode': 'per_batch', 'ratio': (0, 0)}, 'is not two counts'),
    ({'mode': 'two_stream', 'ratio': (0, 1)}, 'needs real images'),
    ({'mode': 'phased'}, "mode 'phased' needs phases"),
    ({'mode': 'phased', 'phases': [('sintetic', 2)]}, "Did you mean 'synthetic'"),
    ({'mode': 'phased', 'phases': [('real', 0)]}, 'lasts 0 epochs'),
    ({'synthetic_weight': -1}, 'synthetic_weight = -1'),
    ({'storre': 'x'}, "mix has no option 'storre'. Did you mean 'store'"),
    ({'stores': []}, 'either store or stores'),
    ({'store': None}, 'either store or stores'),
    ({'store': None, 'stores': [{'store': 'x', 'weigth': 2}]}, "Did you mean 'weight'"),
    ({'store': None, 'stores': [{'store': 'x', 'weight': 0}]}, 'weight = 0 is not a positive number'),
    ({'store': None, 'stores': [{'store': 'x'}], 'select': 'a > 1'}, 'select beside stores'),
    ({'select': {'topk': 3}}, "Did you mean 'top_k'"),
    ({'sources': 'all'}, "sources = 'all' is unknown"),
    ({'soft_labels': 'clip'}, 'names no column'),
    ({'soft_labels': {'column': 'a', 'blend': 2}}, 'blend = 2'),
    ({'soft_labels': {'column': 'clip_q'}}, "no column 'clip_q'. Did you mean 'clip_p'"),
    ({'soft_labels': {'column': 'clip_p'}}, 'not lists'),
    ({'epoch_steps': 0}, 'epoch_steps = 0'),
    ({'store': '/nowhere'}, '/nowhere'),
    ({'store': None, 'stores': [{'store': 'x', 'weight': 2}], 'mode': 'concat'}, "no meaning in mode 'concat'"),
]


@pytest.mark.parametrize(('mix', 'text'), BAD, ids=[str(mix) for mix, _ in BAD])
def test_wrong_options_are_refused_in_one_sentence(world: Path, mix: dict[str, Any], text: str) -> None:  # noqa: F811
    with pytest.raises(SynthAugError, match=text) as caught:
        loader(recipe(world, mix={'store': str(world / 'variants'), **mix}))
    assert caught.value.cure


def test_recipes_that_do_not_fit_are_refused(world: Path) -> None:  # noqa: F811
    mix = {'store': str(world / 'variants')}

    def refuses(text: str, edit: Callable[[Config], Any], **more: Any) -> None:
        cfg = recipe(world, mix={**mix, **more})
        edit(cfg)
        with pytest.raises(RecipeError, match=text):
            loader(cfg)

    refuses('has a batch_sampler already', lambda c: c.train_dataloader.update(batch_sampler={'type': 'x'}))
    refuses('needs sampler and batch_size', lambda c: c.train_dataloader.pop('sampler'))
    refuses('needs a recipe that trains', lambda c: c.pop('train_dataloader'))
    refuses('batch augments', lambda c: c.model.update(train_cfg={'augments': {'type': 'Mixup', 'alpha': 0.2}}), mode='two_stream')
    refuses('preprocesses with TwoNormDataPreprocessor', lambda c: c.data_preprocessor.update(type='TwoNormDataPreprocessor'), mode='two_stream')
    refuses('the model TimmClassifier has none', lambda c: setattr(c, 'model', {'type': 'TimmClassifier'}), mode='two_stream')
    refuses('cal_acc=False', lambda c: c.model.head.update(cal_acc=True), soft_labels={'column': 'x'})
    pixels = in_memory(world).train_dataloader.dataset
    refuses("partner='source' needs real images with file paths", lambda c: c.train_dataloader.update(dataset=pixels), partner='source')
    refuses('cannot be checked', lambda c: c.train_dataloader.update(dataset=pixels), sources='in_real_set')
    refuses('24 of 44 have no variants', lambda c: None, mode='per_batch', partner='source', store=str(world / 'some'))
    unpacked = recipe(world, mix=mix)
    unpacked.train_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}]
    with pytest.raises(RecipeError, match='gives no data_samples'):
        next(iter(loader(unpacked)))


def test_real_classes_without_names_are_refused(tmp_path: Path, world: Path) -> None:  # noqa: F811
    cfg = recipe(world, mix={'store': str(world / 'variants')})
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_text('one/0.png 1\n')
    with pytest.raises(DataError, match='does not name its classes'):
        loader(cfg)


def test_a_source_that_is_listed_twice_counts_once_per_position(world: Path) -> None:  # noqa: F811
    table = loader(recipe(world, mix={'store': str(world / 'some'), 'partner': 'source'})).batch_sampler.dataset.partner_table('source')
    assert int(table.available().sum()) == 5 * len(CLASSES) < PER_CLASS * len(CLASSES)


def test_synthetic_images_of_another_size_are_refused_before_training(tmp_path: Path, world: Path) -> None:  # noqa: F811
    """A pipeline that keeps sizes cannot batch 20 px real images with 16 px synthetic ones; the cure is named."""
    real = make_real(tmp_path / 'real')
    for path in real.rglob('*.png'):
        Image.open(path).resize((20, 20)).save(path)
    cfg = recipe(world, mix={'store': str(world / 'variants'), 'alpha': 0.5})
    cfg.train_dataloader.dataset.data_root = str(real)
    cfg.train_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]
    with pytest.raises(DataError, match=r'\(3, 16, 16\), real ones as \(3, 20, 20\).*size'):
        loader(cfg)
    cfg.train_dataloader.dataset.pipeline.insert(1, {'type': 'Resize', 'scale': 16})
    assert len(loader(cfg)) > 0


def test_classes_without_real_images_are_named_in_the_log(tmp_path: Path, world: Path, log: list[str]) -> None:  # noqa: F811
    real = make_real(tmp_path / 'real')
    for path in (real / CLASSES[1]).glob('*.png'):
        path.unlink()
    cfg = recipe(world, mix={'store': str(world / 'free'), 'alpha': 0.5})
    cfg.train_dataloader.dataset.data_root = str(real)
    epochs(cfg)
    assert any(f"No real image of the classes ['{CLASSES[1]}']" in line for line in log)
