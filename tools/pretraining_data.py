"""Unpack CIFAR-10 and CIFAR-100 into the image folders of the pre-training study, `synthaug compare pretraining_cifar10`.

    python tools/pretraining_data.py --packs PACKS --out runs/pretraining-data

PACKS holds cifar10/ and cifar100/, each with index.npz and the tars of WebP strips that fewshot_data.py reads. Nothing else in this repository needs them.

Parts of CIFAR-10, all disjoint, every class alike:

    seen    20,000 images: what the generator learns, and what pre-training on real images sees
    train   5,000: the real images of the task, of which a few-shot task draws its shots
    val     1,000: what options and epochs are chosen on
    test    5,000 of the test images: where the figures come from; --all-test takes all 10,000

CIFAR-100 is the second task, of classes that nothing had seen: 1,600 images in train, 800 in test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fewshot_data

TRAIN_PARTS = {'seen': 40, 'train': 10, 'val': 2}
"""Of CIFAR-10's train images: strips (500 images each, every class alike) of each part."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--packs', type=Path, required=True, help='the folder that holds cifar10/ and cifar100/')
    parser.add_argument('--out', type=Path, default=Path('runs/pretraining-data'))
    parser.add_argument('--all-test', action='store_true', help='all 10,000 test images of CIFAR-10, not 5,000')
    args = parser.parse_args()
    for name in ('cifar10', 'cifar100'):
        if not (args.packs / name / 'index.npz').is_file():
            raise SystemExit(f'{args.packs / name} holds no index.npz. Give the folder that holds cifar10/ and cifar100/ with --packs.')
        if (args.out / name).exists():
            raise SystemExit(f'{args.out / name} exists. Remove it, or give another folder with --out.')
    for name in ('cifar10', 'cifar100'):
        packs, out = args.packs / name, args.out / name
        cifar10 = name == 'cifar10'
        # CIFAR-100 here is a few-shot pack: its strips hold what there is.
        fewshot_data.unpack_cifar(packs, out, TRAIN_PARTS if cifar10 else {'train': 4}, 'train')
        fewshot_data.unpack_cifar(packs, out, {'test': (20 if args.all_test else 10) if cifar10 else 2}, 'test')
        counts = {part.name: sum(1 for _ in part.rglob('*.png')) for part in sorted(out.iterdir())}
        print(f'{out}: {", ".join(f"{count:,} in {part}" for part, count in counts.items())}', flush=True)


if __name__ == '__main__':
    main()
