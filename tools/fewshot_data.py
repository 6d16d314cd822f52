"""Unpack EuroSAT, Caltech-101 (10 classes) and CIFAR-10 into image folders, split for a few-shot study whose models are trained here.

    python tools/fewshot_data.py --packs PACKS --out runs/fewshot/data [--only eurosat]

PACKS holds eurosat/{train,test}.zip and caltech10/{train,test}.zip (ImageFolder trees), and cifar10/ (index.npz; train-0.tar and
train-1.tar with WebP strips of 500 images, lossless). Nothing else in this repository needs them.

No CLIP and no generator can be had offline that know these data sets from elsewhere, as the study of He et al. (ICLR 2023) has it, so
small ones are trained (train_small_clip.py, `synthaug learn edm edm_eurosat64`). What they see must not be what the study draws its
shots from. Hence three parts of each data set, all disjoint:

    seen    what CLIP (EuroSAT, CIFAR-10) and the generator (EuroSAT) are trained on
    train   what the study draws shots and validation images from
    test    where its figures come from

EuroSAT's train images are halved by seed, class by class. Caltech is in no `seen`. CIFAR-10 is there to teach CLIP to see: its `val`
tells how well.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

CIFAR10_PARTS = {'seen': 36, 'val': 4}
"""Of CIFAR-10: strips (500 images each, every class alike) of each part."""


def halves(names: list[str], seed: int) -> tuple[set[str], set[str]]:
    """File names `<split>/<class>/<file>` in two halves by chance, class by class; the first is the larger by one where they are odd."""
    classes = defaultdict[str, list[str]](list)
    for name in sorted(names):
        classes[PurePosixPath(name).parent.name].append(name)
    first: set[str] = set()
    for place, label in enumerate(sorted(classes)):
        order = np.random.default_rng((seed, place)).permutation(len(classes[label]))
        first |= {classes[label][i] for i in order[: (len(order) + 1) // 2]}
    return first, set(names) - first


def unzip(archive: Path, out: Path, parts: dict[str, set[str]] | None = None) -> None:
    """Write the images `<split>/<class>/<file>` of a zip into `out`, byte for byte, or into folders of `out` by name: part -> file names."""
    with zipfile.ZipFile(archive) as opened:
        names = images_of(archive)
        for part, chosen in ({archive.stem: set(names)} if parts is None else parts).items():
            for name in sorted(chosen):
                path = out / part / PurePosixPath(name).parent.name / PurePosixPath(name).name  # a name cannot lead elsewhere
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(opened.read(name))


def images_of(archive: Path) -> list[str]:
    """Names of the files in a zip."""
    with zipfile.ZipFile(archive) as opened:
        return [entry.filename for entry in opened.infolist() if not entry.is_dir()]


def strips(folder: Path, count: int, split: str = 'train') -> Iterator[np.ndarray]:
    """The first `count` strips of CIFAR's images of a split, each (500, 32, 32, 3) uint8; the last of a split may hold fewer."""
    found = 0
    for archive in sorted(folder.glob(f'{split}-*.tar'), key=lambda path: int(path.stem.split('-')[1])):
        with tarfile.open(archive) as opened:
            for member in opened:
                file = opened.extractfile(member)
                if found == count or file is None:
                    return
                found += 1
                yield np.asarray(Image.open(io.BytesIO(file.read())).convert('RGB')).reshape(-1, 32, 32, 3)
    if found < count:
        raise SystemExit(f'{folder} holds {found} strips of {split} images, {count} are wanted. Add the next {split}-*.tar.')


def unpack_cifar(folder: Path, out: Path, parts: Mapping[str, int] = CIFAR10_PARTS, split: str = 'train') -> None:
    """Write a split's first strips as PNG (they are lossless, the images have no files of their own): part of `out` -> its number of strips, in order."""
    with np.load(folder / 'index.npz') as index:
        labels, names, classes = (index[key] for key in (f'{split}_labels', f'{split}_names', 'classes'))
    of_strips = [part for part, count in parts.items() for _ in range(count)]
    place = 0
    for part, strip in zip(of_strips, strips(folder, len(of_strips), split), strict=True):
        for pixels in strip:
            path = out / part / classes[labels[place]].decode() / f'{Path(names[place].decode()).stem}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
            place += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--packs', type=Path, required=True, help='the folder that holds eurosat/, caltech10/ and cifar10/')
    parser.add_argument('--out', type=Path, default=Path('runs/fewshot/data'))
    parser.add_argument('--only', nargs='+', choices=['eurosat', 'caltech10', 'cifar10'], default=['eurosat', 'caltech10', 'cifar10'])
    parser.add_argument('--seed', type=int, default=0, help='decides the halves of EuroSAT')
    args = parser.parse_args()
    for name in args.only:
        packs, out = args.packs / name, args.out / name
        if out.exists():
            raise SystemExit(f'{out} exists. Remove it, or leave {name} out of --only.')
        if name == 'cifar10':
            unpack_cifar(packs, out)
        else:
            if name == 'eurosat':
                seen, train = halves(images_of(packs / 'train.zip'), args.seed)
                unzip(packs / 'train.zip', out, {'seen': seen, 'train': train})
            else:
                unzip(packs / 'train.zip', out)
            unzip(packs / 'test.zip', out)
        counts = Counter(path.relative_to(out).parts[0] for path in out.rglob('*.*'))
        print(f'{out}: {", ".join(f"{count:,} in {part}" for part, count in sorted(counts.items()))}', flush=True)


if __name__ == '__main__':
    main()
