"""tools/train_small_clip.py and tools/fewshot_data.py: a CLIP of one's own from image folders, and which images it may see."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import REPO
from synthaug_plugins.curation.clip_model import ClipModel


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / 'tools'))


def _folder(root: Path, classes: tuple[str, ...], count: int = 6) -> Path:
    """Images of one colour per class, with noise."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = 40 + 60 * np.eye(3)[place % 3] + rng.normal(0, 8, (24, 24, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f'{i}.png')
    return root


def _train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: str, *more: str) -> Path:
    trainer = importlib.import_module('train_small_clip')
    data = ['--data', f'eurosat={tmp_path / "land"}', '--data', str(tmp_path / 'things')]
    size = ['--batch-size', '8', '--steps', '3', '--layers', '1', '1', '1', '1', '--width', '4', '--pixels', '32', '--device', 'cpu']
    arguments = [*data, *size, '--out', str(tmp_path / out), '--work-dir', str(tmp_path / f'{out}-work'), *more]
    monkeypatch.setattr(sys, 'argv', ['train_small_clip.py', *arguments])
    trainer.main()
    return tmp_path / out


def test_a_few_steps_give_a_clip_with_batch_norm_that_the_package_loads_and_equal_seeds_equal_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path / 'land', ('SeaLake', 'Forest'))
    _folder(tmp_path / 'things', ('red_box', 'blue_box'))
    first = _train(monkeypatch, tmp_path, 'first', '--check', f'eurosat={tmp_path / "land"}')
    again = _train(monkeypatch, tmp_path, 'again')
    other = _train(monkeypatch, tmp_path, 'other', '--seed', '1')

    weights = [(folder / 'open_clip_model.safetensors').read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]

    clip = ClipModel(str(first))
    clip.check()
    clip.load(torch.device('cpu'))
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in clip.model.visual.modules())
    texts = clip.encode_texts(['a photo of a forest', 'a photo of a xylophone'])  # a word of no caption is spelled
    images = clip.encode_images([np.zeros((30, 50, 3), np.uint8)])
    assert texts.shape == (2, 256) and images.shape == (1, 256)
    assert clip.excess_tokens(['a centered satellite photo of the sea or lake.']) == [0]

    card = json.loads((first / 'card.json').read_text())
    assert [source['name'] for source in card['data']] == ['eurosat', 'things']
    assert card['data'][0]['images_per_class'] == {'Forest': 6, 'SeaLake': 6}
    assert 0 <= card['check']['land']['zero_shot_accuracy'] <= 1
    assert f'{100 * card["check"]["land"]["zero_shot_accuracy"]:.1f} %' in (first / 'card.md').read_text()
    assert str(tmp_path) not in (first / 'card.json').read_text() + (first / 'card.md').read_text()

    # Figures on further images, long after the training.
    monkeypatch.setattr(sys, 'argv', ['', '--out', str(first), '--check', str(tmp_path / 'things'), '--device', 'cpu'])
    importlib.import_module('train_small_clip').main()
    assert set(json.loads((first / 'card.json').read_text())['check']) == {'land', 'things'}


def test_captions_name_the_class_and_no_two_classes_of_a_data_set_share_one(tmp_path: Path) -> None:
    trainer = importlib.import_module('train_small_clip')
    captions = trainer.Source.read(f'eurosat={_folder(tmp_path / "land", ("SeaLake", "Forest", "AnnualCrop"), 1)}').captions()
    assert all('sea or lake' in text or 'sea lake' in text for text in captions['SeaLake'])
    assert all('forest' in text for text in captions['Forest'])
    assert 'a centered satellite photo of annual crop land.' in captions['AnnualCrop']
    assert not set(captions['SeaLake']) & set(captions['Forest'])
    plain = trainer.Source.read(str(_folder(tmp_path / 'things', ('red_box',), 1))).captions()
    assert all('red box' in text and 'satellite' not in text for text in plain['red_box'])


def test_captions_of_the_same_class_are_no_negatives_and_satellites_alone_are_turned_upside_down(tmp_path: Path) -> None:
    trainer = importlib.import_module('train_small_clip')
    sources = [
        trainer.Source.read(text) for text in (f'eurosat={_folder(tmp_path / "land", ("Forest", "River"))}', str(_folder(tmp_path / 'more', ('Forest',))))
    ]

    class Tokenizer:
        def tokenizer(self, text: str) -> dict[str, list[int]]:
            return {'input_ids': text.split()}

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[len(text)] for text in texts])

    pairs = trainer.read_pairs(sources, Tokenizer(), 16, torch.device('cpu'))
    assert pairs.images.shape == (18, 3, 16, 16) and pairs.starts.tolist() == [0, 6, 12]
    # 'a photo of a forest' is true of both forests.
    assert pairs.apart.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert pairs.turns.tolist() == [True, True, False]

    ramp = torch.linspace(0, 1, 16)[None, None, :, None].expand(64, 3, 16, 16)  # brighter towards the bottom
    torch.manual_seed(0)
    turned = trainer.augment(ramp, torch.arange(64) < 32)
    upside_down = turned[:, :, :4].mean((1, 2, 3)) > turned[:, :, -4:].mean((1, 2, 3))
    assert 6 < int(upside_down[:32].sum()) < 26 and not upside_down[32:].any()
    assert turned.min() >= 0 and turned.max() <= 1


def write_strips(folder: Path, **counts: int) -> dict[str, np.ndarray]:
    """A pack as CIFAR's: so many strips of 4 images for each split, in one tar, with names and labels beside it."""
    folder.mkdir(parents=True)
    rng, index = np.random.default_rng(0), {}
    splits = {split: rng.integers(0, 256, (count, 4 * 32, 32, 3), np.uint8) for split, count in counts.items()}
    for split, strips in splits.items():
        with tarfile.open(folder / f'{split}-0.tar', 'w') as archive:
            for k, strip in enumerate(strips):
                file = io.BytesIO()
                Image.fromarray(strip).save(file, 'webp', lossless=True)
                member = tarfile.TarInfo(f'{k:02d}.webp')
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)
        count = 4 * len(strips)
        index |= {f'{split}_names': np.array([f'{split}_{i}.png'.encode() for i in range(count)]), f'{split}_labels': np.arange(count) % 2}
    np.savez(folder / 'index.npz', classes=np.array([b'cat', b'dog']), **index)
    return splits


def test_the_parts_of_the_few_shot_data_are_disjoint_and_keep_their_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unpack = importlib.import_module('fewshot_data')
    packs = tmp_path / 'packs'
    for name in ('eurosat', 'caltech10'):
        (packs / name).mkdir(parents=True)
        for split in ('train', 'test'):
            with zipfile.ZipFile(packs / name / f'{split}.zip', 'w') as archive:
                for label in ('a', 'b'):
                    for i in range(8):
                        archive.writestr(f'{split}/{label}/{i}.jpg', f'{name} {split} {label} {i}')
    strips = write_strips(packs / 'cifar10', train=40)['train']

    monkeypatch.setattr(sys, 'argv', ['', '--packs', str(packs), '--out', str(tmp_path / 'out')])
    unpack.main()
    files = {path.relative_to(tmp_path / 'out').as_posix(): path for path in (tmp_path / 'out').rglob('*.*')}
    for label in ('a', 'b'):
        seen, train = ({Path(name).name for name in files if name.startswith(f'eurosat/{part}/{label}/')} for part in ('seen', 'train'))
        assert len(seen) == len(train) == 4 and not seen & train
    assert files['eurosat/test/b/3.jpg'].read_text() == 'eurosat test b 3' and files['caltech10/train/a/0.jpg'].read_text() == 'caltech10 train a 0'
    assert sum(name.startswith('cifar10/seen/') for name in files) == 36 * 4 and sum(name.startswith('cifar10/val/') for name in files) == 4 * 4
    assert np.array_equal(np.asarray(Image.open(files['cifar10/seen/dog/train_1.png'])), strips[0, 32:64])
    with pytest.raises(SystemExit, match='exists'):
        unpack.main()


def test_the_parts_of_the_pre_training_data_are_disjoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unpack = importlib.import_module('pretraining_data')
    cifar10 = write_strips(tmp_path / 'packs' / 'cifar10', train=52, test=10)
    monkeypatch.setattr(sys, 'argv', ['', '--packs', str(tmp_path / 'packs'), '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit, match=r'cifar100 holds no index\.npz'):
        unpack.main()
    assert not (tmp_path / 'out').exists()
    write_strips(tmp_path / 'packs' / 'cifar100', train=4, test=2)
    unpack.main()
    names = {part: {path.name for path in (tmp_path / 'out' / 'cifar10' / part).rglob('*.png')} for part in ('seen', 'train', 'val', 'test')}
    assert {part: len(of) for part, of in names.items()} == {'seen': 160, 'train': 40, 'val': 8, 'test': 40}
    assert len(set().union(*names.values())) == 248
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'out' / 'cifar10' / 'train' / 'dog' / 'train_161.png')), cifar10['train'][40, 32:64])
    with pytest.raises(SystemExit, match='exists'):
        unpack.main()
