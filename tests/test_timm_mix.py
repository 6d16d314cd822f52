"""Real and synthetic images in timm's loaders and tasks: the same batches for any workers, ranks and resumes; losses as they are written down."""

from __future__ import annotations

import functools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_mix import CLASSES, make_real, make_store, world  # noqa: F401
from test_mix_data import soft_store
from timm.loss import LabelSmoothingCrossEntropy

from conftest import copy_of_this_process
from synthaug_plugins.errors import DataError, RecipeError, SynthAugError
from synthaug_plugins.timm import MixClassificationTask, MixedImageDataset, MixedTarget, create_mixed_dataset, create_mixed_loader

CPU: dict[str, Any] = {'input_size': (3, 16, 16), 'device': 'cpu', 'num_workers': 0}


def dataset(world: Path, store: str = 'variants', **options: Any) -> MixedImageDataset:  # noqa: F811
    return create_mixed_dataset('', str(world / store), root=str(world), split='train', **options)


def loader(world: Path, batch_size: int = 8, workers: int = 0, data: dict[str, Any] | None = None, **options: Any) -> Any:  # noqa: F811
    return create_mixed_loader(dataset(world, **(data or {})), batch_size=batch_size, **{**CPU, 'num_workers': workers, **options})


def numbers(batches: Any) -> list[list[int]]:
    return [target.index.tolist() for _, target in batches]


# --- batches


def test_without_synthetic_images_the_order_is_that_of_torchs_sampler(world: Path) -> None:  # noqa: F811
    mixed = loader(world, alpha=0)
    order = list(torch.utils.data.DistributedSampler(range(44), num_replicas=1, rank=0, seed=0))
    assert [n for batch in numbers(mixed) for n in batch] == order[:40]  # timm drops the last, incomplete batch


def test_each_real_image_gives_its_place_to_a_variant_of_its_own(world: Path) -> None:  # noqa: F811
    mixed = loader(world, alpha=1, partner='source')
    assert isinstance(mixed.dataset, MixedImageDataset)
    replaced = numbers(loader(world, alpha=0))
    for (_, target), places in zip(mixed, replaced, strict=True):
        assert target.is_synthetic.all()
        for index, place in zip(target.index.tolist(), places, strict=True):
            records, row = mixed.dataset.synthetic.locate(index)
            assert records.sources[row].as_py() == mixed.dataset.real.filename(place)
            assert mixed.dataset.synthetic_id(index) == records.ids[row].as_py()
            assert CLASSES[records.labels[row]] == Path(records.sources[row].as_py()).parent.name


@pytest.mark.parametrize('options', [{'alpha': 0.5}, {'mode': 'per_batch', 'ratio': (3, 1)}, {'mode': 'two_stream', 'ratio': (2, 1)}, {'mode': 'concat'}])
def test_batches_depend_neither_on_workers_nor_on_a_resume(world: Path, options: dict[str, Any]) -> None:  # noqa: F811
    data = {'concat': options.get('mode') == 'concat'}
    alone, helped = loader(world, data=data, **options), loader(world, workers=1, persistent_workers=True, data=data, **options)
    two_epochs = [numbers(alone), numbers(alone)]
    assert two_epochs[0] != two_epochs[1], 'epochs follow each other where nobody sets them'
    assert [numbers(helped), numbers(helped)] == two_epochs
    again = loader(world, data=data, **options)
    again.batch_sampler.resume_at(1, 2)
    assert numbers(again) == two_epochs[1][2:]
    again.batch_sampler.set_epoch(1)
    targets = [target for _, target in again]
    assert [target.index.tolist() for target in targets] == two_epochs[1]
    kinds = [target.is_synthetic.float().mean().item() for target in targets]
    expected = {'per_batch': 0.25, 'two_stream': 1 / 3}.get(options.get('mode', ''))
    assert expected is None or kinds == pytest.approx([expected] * len(kinds))


def test_images_of_both_kinds_run_through_timms_transform(world: Path) -> None:  # noqa: F811
    images, target = next(iter(loader(world, mode='two_stream')))
    assert images.shape == (16, 3, 16, 16) and images.dtype == torch.float32
    assert isinstance(target, MixedTarget) and len(target) == 16
    plain, labels = next(iter(loader(world, mode='two_stream', use_prefetcher=False)))
    assert plain.shape == images.shape and torch.equal(labels.label, target.label)
    one, two = (next(iter(loader(world, alpha=0.5, no_aug=True, targets=kind))) for kind in ('mixed', 'labels'))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1].label, two[1])


def test_a_dataset_in_memory_works_too_and_files_go_to_spawned_workers(world: Path) -> None:  # noqa: F811
    class InMemory(torch.utils.data.Dataset):
        classes, targets, transform = list(CLASSES), [0, 1, 2, 3] * 2, None

        def __getitem__(self, index: int) -> tuple[Any, int]:

            image = Image.new('L', (16, 16), 10 * index)
            return (image if self.transform is None else self.transform(image)), self.targets[index]

        def __len__(self) -> int:
            return 8

    mixed = create_mixed_dataset(InMemory(), str(world / 'free'))
    assert mixed[8][0].mode == mixed[0][0].mode == 'L'
    assert {
        t
        for _, target in create_mixed_loader(mixed, batch_size=4, alpha=0.5, **{**CPU, 'input_size': (1, 16, 16), 'mean': (0.5,), 'std': (0.2,)})
        for t in target.label.tolist()
    }
    files = pickle.loads(pickle.dumps(dataset(world)))
    assert files[50][1].is_synthetic and files[50][0].size == (16, 16)


# --- losses


def logits(n: int) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)


class Answers(torch.nn.Module):
    """A model whose answers are given."""

    num_classes = 4

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.answers


def test_the_loss_of_two_streams_is_mean_of_real_plus_weighted_mean_of_synthetic(world: Path) -> None:  # noqa: F811
    images, target = next(iter(loader(world, mode='two_stream', ratio=(4, 1), synthetic_weight=0.3)))
    answers, stock = logits(10), LabelSmoothingCrossEntropy(0.1)
    task = MixClassificationTask(Answers(answers), criterion_kwargs={'smoothing': 0.1}, weighs=True, verbose=False)
    real, made = ~target.is_synthetic, target.is_synthetic
    expected = stock(answers[real], target.label[real]) + 0.3 * stock(answers[made], target.label[made])
    torch.testing.assert_close(task(images, target)['loss'], expected)
    bce = MixClassificationTask(Answers(answers), criterion_kwargs={'loss_type': 'bce', 'smoothing': 0.1}, weighs=True, verbose=False)
    expected = bce.criterion(answers[real], target.label[real]) + 0.3 * bce.criterion(answers[made], target.label[made])
    torch.testing.assert_close(bce(images, target)['loss'], expected)


def test_with_weights_of_one_the_loss_is_timms_to_the_bit(world: Path) -> None:  # noqa: F811
    images, target = next(iter(loader(world, alpha=0.5)))
    task = MixClassificationTask(Answers(logits(8)), criterion_kwargs={'smoothing': 0.1}, verbose=False)
    assert torch.equal(task(images, target)['loss'], LabelSmoothingCrossEntropy(0.1)(logits(8), target.label))
    assert torch.equal(task(images, target.label)['loss'], task(images, target)['loss'])


@pytest.mark.parametrize('blend', [0.0, 0.4, 1.0])
def test_soft_labels_are_blended_and_smoothed(world: Path, tmp_path: Path, blend: float) -> None:  # noqa: F811
    soft_store(tmp_path / 'soft', lambda label: [0.1, 0.2, 0.3, 0.4])
    mixed = create_mixed_dataset('', str(tmp_path / 'soft'), root=str(world), split='train', soft_labels={'column': 'clip_probs', 'blend': blend})
    batches = create_mixed_loader(mixed, batch_size=8, alpha=0.5, **CPU)
    images, target = next(iter(batches))
    assert target.is_synthetic.any() and not target.is_synthetic.all()
    answers = logits(8)
    task = MixClassificationTask(Answers(answers), criterion_kwargs={'smoothing': 0.1}, soft_labels=True, verbose=False)
    hot = torch.nn.functional.one_hot(target.label, 4).float()
    wanted = torch.where(target.is_synthetic[:, None], (1 - blend) * hot + blend * torch.tensor([0.1, 0.2, 0.3, 0.4]), hot)
    expected = -((0.9 * wanted + 0.025) * answers.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task(images, target)['loss'], expected)
    if blend == 0:
        torch.testing.assert_close(expected, LabelSmoothingCrossEntropy(0.1)(answers, target.label))


def test_a_loss_that_is_no_mean_over_samples_is_refused() -> None:
    with pytest.raises(RecipeError, match='CrossEntropyLoss is not a mean'):
        MixClassificationTask(Answers(logits(4)), criterion=torch.nn.CrossEntropyLoss(reduction='sum'), weighs=True, verbose=False)
    for weights in torch.ones(4, 4) + 4 * torch.eye(4):  # a class of more weight than the others, whichever it is
        with pytest.raises(RecipeError, match='CrossEntropyLoss is not a mean'):
            MixClassificationTask(Answers(logits(4)), criterion=torch.nn.CrossEntropyLoss(weights), weighs=True, verbose=False)
    with pytest.raises(RecipeError, match='does not support Mixup/CutMix'):
        MixClassificationTask(Answers(logits(4)), criterion_kwargs={'loss_type': 'asl'}, soft_labels=True, verbose=False)


def test_frozen_statistics_stay_while_everything_else_learns() -> None:
    model = timm.create_model('test_resnet', num_classes=4)
    names = set(model.state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    task = MixClassificationTask(model, criterion_kwargs={}, frozen_bn=['layer[12]'], freeze_affine=True, verbose=False)
    optimizer = torch.optim.SGD([p for p in task.get_trainable_module().parameters() if p.requires_grad], 0.1)
    task.get_trainable_module().train()
    task(torch.randn(4, 3, 32, 32), torch.arange(4))['loss'].backward()
    optimizer.step()
    after = model.state_dict()
    frozen = {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and ('layer1' in n or 'layer2' in n)}
    assert frozen and set(after) == names
    for key, value in after.items():
        if key.rpartition('.')[0] in frozen:
            assert torch.equal(value, before[key]), key
    assert not torch.equal(after['fc.weight'], before['fc.weight'])
    others = [k for k in after if k.endswith('running_mean') and k.rpartition('.')[0] not in frozen]
    assert others and not any(torch.equal(after[k], before[k]) for k in others)


# --- several processes


def as_rank(rank: int, folder: Path, world: Path) -> None:  # noqa: F811
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo', f'file://{folder}/group', rank=rank, world_size=2)
    found = {mode: numbers(loader(world, batch_size=4, mode=mode, **options)) for mode, options in MODES.items()}
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=4)
    task = MixClassificationTask(model, criterion_kwargs={}, weighs=True, frozen_bn=True, verbose=False)
    task.prepare_distributed(device_ids=[torch.device('cpu')])
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), 0.05)
    for images, target in loader(world, batch_size=4, mode='two_stream', synthetic_weight=0.5, input_size=(3, 32, 32)):
        optimizer.zero_grad()
        task(images, target)['loss'].backward()
        optimizer.step()
    found['weights'] = [float(p.double().sum()) for p in model.parameters()]
    (folder / f'{rank}.json').write_text(json.dumps(found))


MODES: dict[str, dict[str, Any]] = {'per_sample': {'alpha': 0.5, 'partner': 'any'}, 'per_batch': {'ratio': (1, 1)}, 'two_stream': {'ratio': (2, 1)}}


def test_two_processes_share_the_batches_of_one_and_learn_the_same(world: Path, tmp_path: Path) -> None:  # noqa: F811
    processes = [copy_of_this_process(functools.partial(as_rank, rank, tmp_path, world)) for rank in (0, 1)]
    for process in processes:
        ended = process.end()
        assert ended.status == 0, ended.err[-3000:]
    zero, one = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1))
    whole = numbers(loader(world, batch_size=8, **MODES['per_sample']))
    assert [[n for pair in zip(a, b, strict=True) for n in pair] for a, b in zip(zero['per_sample'], one['per_sample'], strict=True)] == whole
    for batches in (zero['per_batch'], one['per_batch']):
        assert {sum(n >= 44 for n in batch) for batch in batches} == {2}
    for batches in (zero['two_stream'], one['two_stream']):
        assert {(len(batch), sum(n >= 44 for n in batch)) for batch in batches} == {(6, 2)}
    seen = [n for found in (zero, one) for batch in found['two_stream'] for n in batch if n >= 44]
    assert len(seen) == len(set(seen)), 'no synthetic image comes twice before all have come'
    assert zero['weights'] == one['weights']


# --- refusals


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'mode': 'per_batsh'}, "Did you mean 'per_batch'"),
        ({'mode': 'per_batch', 'ratio': (2, 1)}, 'does not divide a batch of 8'),
        ({'mode': 'concat'}, 'Set concat=True'),
        ({'mode': 'two_stream', 'targets': 'labels'}, 'neither loss weights nor soft labels'),
        ({'num_aug_splits': 3}, 'augmentation splits'),
        ({'use_multi_epochs_loader': True}, 'multi-epochs loader'),
        ({'batch_size': 64}, '44 images per process give no whole batch of 64'),
    ],
)
def test_options_that_do_not_fit_are_refused(world: Path, options: dict[str, Any], says: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=says):
        loader(world, **options)


def test_data_that_do_not_fit_are_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    make_store(tmp_path / 'few', classes=CLASSES[:3])
    with pytest.raises(SynthAugError, match=r"The class names differ.*only here: \['two'\]"):
        create_mixed_dataset('', str(tmp_path / 'few'), root=str(world), split='train')
    with pytest.raises(DataError, match=r'class order differs: label 0 .* --class-map'):
        create_mixed_dataset('', str(world / 'variants'), root=str(world), split='train', classes=CLASSES[::-1])
    other = make_real(tmp_path / 'other' / 'deeper', per_class=2)
    for name in os.listdir(other):
        for i in range(2):
            (other / name / f'{i}.png').rename(other / name / f'new{i}.png')
    with pytest.raises(DataError, match='None of the 88 selected records'):
        create_mixed_dataset('', str(world / 'variants'), root=str(other))
    with pytest.raises(RecipeError, match='as a stream'):
        create_mixed_dataset('wds/x', str(world / 'variants'), root=str(world / 'free' / 'shards'), split='train')
    monkeypatch.setattr(timm, '__version__', '0.9.16')
    with pytest.raises(RecipeError, match=r'timm 0\.9\.16 .* is outside the versions >=1.0.31,<1.1'):
        dataset(world)


def test_a_class_map_brings_folders_into_the_order_of_the_store(world: Path, tmp_path: Path) -> None:  # noqa: F811
    classes = ('two', 'one', 'four', 'three')
    make_store(tmp_path / 'store', classes=classes)
    (tmp_path / 'classes.txt').write_text('\n'.join(classes))
    mixed = create_mixed_dataset('', str(tmp_path / 'store'), root=str(world), split='train', class_map=str(tmp_path / 'classes.txt'))
    assert mixed.classes == list(classes)
    assert np.bincount([mixed[i][1].label for i in range(44)]).tolist() == [11] * 4
