"""How often `synthaug audit` calls a new image a copy, and how many planted copies it finds, by repeated splits of real images.

    python tools/benchmarks/bench_audit.py                                        # the digits of scikit-learn
    python tools/benchmarks/bench_audit.py --data data/mine data/other            # folders of class folders too

Every split draws at random training images, held-out ones and a "store" of the rest: new images, so whatever is flagged among them is a false alarm. Each of
the three comparisons promises --false-alarms at the most, as a mean over images; `worst` is the worst split. `contaminated` is the share of splits whose
store would end the audit with status 5, promised 5 % at the most. Copies are planted of the training, the held-out and the stored images.

Real images that are copies of each other are no false alarms: of identical ones one stays, and `SAME_PHOTO` names those that were looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from synthaug_plugins.evaluation.audit.audit import FALSE_ALARMS, learned
from synthaug_plugins.evaluation.audit.chance import Chance, at_least
from synthaug_plugins.evaluation.audit.comparison import STORE, SURE, TEST, TRAIN, near_enough
from synthaug_plugins.evaluation.audit.looking import VIEWS, Seen, turned
from synthaug_plugins.evaluation.audit.looking import look as look_at
from synthaug_plugins.evaluation.audit.nearness import K, Nearest, Placed, to_set, to_train
from synthaug_plugins.evaluation.audit.thumbnails import THUMBNAILS, audit_network
from synthaug_plugins.evaluation.metrics.sets import ImageSet
from synthaug_plugins.real_images import RealImages

SAME_PHOTO = {'bonsai/image_0092.jpg', 'grand_piano/image_0072.jpg', 'starfish/image_0013.jpg', 'grand_piano/image_0014.jpg', 'hawksbill/image_0028.jpg'}
"""Of Caltech-101: each is a photograph, or a picture with another text, that its class holds a second time."""


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=75)
    return np.asarray(Image.open(buffer).convert('RGB'))


def resized(image: np.ndarray, factor: float) -> np.ndarray:
    size = [max(1, round(factor * n)) for n in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BICUBIC))


SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'exact': lambda image: image,
    'mirrored': lambda image: turned(image, 'mirrored'),
    'x 2': lambda image: resized(image, 2),
    'x 0.75': lambda image: resized(image, 0.75),
    'JPEG 75': jpeg,
    'all of x 2': lambda image: jpeg(resized(turned(image, 'mirrored'), 2)),
}


def digits() -> list[np.ndarray]:
    from sklearn.datasets import load_digits

    return [np.repeat((image * 15.9).astype(np.uint8)[..., None], 3, 2) for image in load_digits().images]


def folder(path: str, most: int) -> list[np.ndarray]:
    """Up to `most` images, at random."""
    real = RealImages(path)
    ids = [i for name in real.classes for i in real.ids(name) if i not in SAME_PHOTO]
    return [real.load(ids[i]) for i in np.random.default_rng(0).permutation(len(ids))[:most]]


def different(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of identical images the first."""
    return list({hashlib.sha256(image.tobytes() + repr(image.shape).encode()).digest(): image for image in reversed(images)}.values())[::-1]


def look(images: Sequence[np.ndarray]) -> Seen:
    ids = [str(i) for i in range(len(images))]
    return look_at(ImageSet('images', ids, ids, lambda i: images[int(i)]), audit_network(THUMBNAILS), VIEWS, lambda n: None)


class Split:
    """One split: places of the training, held-out and stored images, and what an audit learns from the first."""

    def __init__(self, seen: Seen, train: int, rng: np.random.Generator, most: int) -> None:
        order = rng.permutation(len(seen))
        held = min(200, (len(seen) - train) // 3)
        self.places = {TRAIN: order[:train], TEST: order[train : train + held], STORE: order[train + held :][:most]}
        origin = torch.from_numpy(seen.features[0][order[:train]]).double().mean(0)
        self.sets = {kind: Placed(Seen(seen.features[:, places], seen.hashes[:, places]), origin) for kind, places in self.places.items()}
        self.k = min(K, train - 1)
        self.chance: Chance = learned(self.sets[TRAIN], self.k)

    def nearest(self, seen: Seen, own: np.ndarray | None = None) -> Iterator[tuple[str, Nearest, int]]:
        """The nearest of each set to images; own: which of the store they are, if they are."""
        images = Placed(seen, self.sets[TRAIN].origin)
        to_real, scales = to_train(images, self.sets[TRAIN], self.k)
        yield TRAIN, to_real, len(self.sets[TRAIN])
        yield TEST, to_set(images, scales, self.sets[TEST]), len(self.sets[TEST])
        yield STORE, to_set(images, scales, self.sets[STORE], own), len(self.sets[STORE]) - (own is not None)


def measure(name: str, images: Sequence[np.ndarray], train: int, arguments: argparse.Namespace, seen: Seen, spoilt: dict[str, Seen]) -> str:
    rng = np.random.default_rng(0)
    alarms: dict[str, list[float]] = {kind: [] for kind in (TRAIN, TEST, STORE)}
    found: dict[str, list[bool]] = {how: [] for how in SPOILT}
    contaminated = 0
    for _ in range(arguments.repeats):
        split = Split(seen, train, rng, arguments.store)
        store = split.sets[STORE]
        for kind, nearest, others in split.nearest(store.seen, np.arange(len(store))):
            copies = near_enough(nearest, split.chance, others, arguments.false_alarms)[0]
            alarms[kind].append(float(copies.mean()))
            if kind == TEST:
                p = 2 * np.minimum(split.chance.of_distances(nearest.distance, others), split.chance.of_bits(nearest.bits, others))
                unlikely = p.min() * len(p) <= SURE / 2 or at_least(int(copies.sum()), arguments.false_alarms * len(p)) <= SURE / 2
                contaminated += bool(copies.any() and unlikely)
        planted = len(spoilt['exact'])
        for how, copied in spoilt.items():
            for kind, nearest, others in split.nearest(copied):
                original = np.isin(np.arange(planted), split.places[kind])
                found[how] += near_enough(nearest, split.chance, others, arguments.false_alarms)[0][original].tolist()
    cells = [f'{100 * np.mean(alarms[kind]):.2f} ({100 * max(alarms[kind]):.1f})' for kind in alarms]
    shares = [f'{100 * np.mean(found[how]):.1f}' for how in SPOILT]
    return '| ' + ' | '.join([name, str(len(images)), str(train), *cells, f'{contaminated} of {arguments.repeats}', *shares]) + ' |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='*', default=[], metavar='FOLDER', help='folders of class folders, beside the digits')
    parser.add_argument('--train', nargs='*', type=int, default=[30, 100, 200, 500], metavar='N', help='training images')
    parser.add_argument('--repeats', type=int, default=20, help='splits')
    parser.add_argument('--images', type=int, default=1800, help='most images of a folder')
    parser.add_argument('--store', type=int, default=500, help='most new images of a split')
    parser.add_argument('--planted', type=int, default=150, help='images of which copies are made')
    parser.add_argument('--false-alarms', type=float, default=FALSE_ALARMS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    print(f'{100 * arguments.false_alarms:g} % promised, {arguments.repeats} splits each; false alarms in %: mean (worst split); copies found in %\n')
    head = ['images of', 'all', 'train', *(f'alarms: {kind}' for kind in (TRAIN, TEST, STORE)), 'contaminated', *SPOILT]
    print('| ' + ' | '.join(head) + ' |\n' + '|---' * len(head) + '|', flush=True)
    for name, images in (('digits', digits()), *((Path(path).name, folder(path, arguments.images)) for path in arguments.data)):
        images = different(images)
        seen = look(images)
        spoilt = {how: look([spoil(image) for image in images[: arguments.planted]]) for how, spoil in SPOILT.items()}
        for train in arguments.train:
            if train <= len(images) // 2:
                print(measure(name, images, train, arguments, seen, spoilt), flush=True)
    print(f'\n{time.process_time() - begin:.0f} s of CPU time')


if __name__ == '__main__':
    main()
