"""Captions of scikit-learn's digits, from what can be measured on them, and the tokenizer that the embedded models share.

A caption names the digit in most cases, and may say how it is written: bold or thin (ink), leaning left or right (second moments), wide or
narrow (spread of columns). Each is measured against the median of the digit's own class, since a one is narrower than a zero; what is near
the median gets no word. So text says more than the class, and none of it is made up. Used by the scripts that train the embedded models.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import clip_training
import numpy as np
from demo import CLASSES, SEEN

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

ATTRIBUTES: dict[str, tuple[str, str]] = {'weight': ('thin', 'bold'), 'lean': ('left', 'right'), 'width': ('narrow', 'wide')}
"""What is measured -> the value for little and the one for much of it."""
_ADJECTIVES = {
    **{'thin': ('thin', 'light', 'fine', 'faint'), 'bold': ('bold', 'thick', 'heavy', 'dark')},
    **{'left': (), 'right': (), 'narrow': ('narrow', 'slim', 'slender'), 'wide': ('wide', 'broad')},
}
_PHRASES = {
    'thin': ('drawn with a thin pen', 'in thin strokes', 'written with little ink'),
    'bold': ('drawn with a thick pen', 'in bold strokes', 'written with much ink'),
    'left': ('leaning to the left', 'leaning left', 'tilted to the left', 'slanted to the left'),
    'right': ('leaning to the right', 'leaning right', 'tilted to the right', 'slanted to the right'),
    'narrow': ('squeezed together',),
    'wide': ('stretched wide',),
}
_TELLING = {word: value for value, words in _ADJECTIVES.items() for word in words} | {
    **{'left': 'left', 'right': 'right', 'little': 'thin', 'much': 'bold', 'squeezed': 'narrow', 'stretched': 'wide'},
}  # the one word that every adjective or phrase has to itself -> what it says
_NUMERALS = tuple('0123456789')
_KINDS = ('', 'digit', 'number', 'numeral', 'handwritten', 'handwritten digit')  # what stands before the name
_KIND_ODDS = (0.4, 0.24, 0.12, 0.04, 0.12, 0.08)
_NO_NAME = ('digit', 'handwritten digit', 'number')
_TAILS = ('on paper', 'written by hand', 'written with a pen', 'in white on black', 'on a black background', 'from a form')  # true of all of them
_MEDIA = ('a photo of', '', 'a picture of', 'an image of', 'a scan of', 'a drawing of')
_MEDIA_ODDS = (0.4, 0.28, 0.1, 0.1, 0.06, 0.06)
FAR = 0.75
"""What stands out: so many standard deviations from the median of the class, as estimated from its quartiles."""
_MENTIONED, _UNNAMED, _NUMERAL, _TAIL = 0.65, 0.07, 0.25, 0.15  # how often: an attribute that applies; no class; 3 for three; a tail


@functools.cache
def seen_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits that embedded models may see: images (1200, 8, 8) uint8 0..255, white on black, and labels (1200,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images[:SEEN] / 16 * 255).astype(np.uint8), digits.target[:SEEN]


def measure(images: np.ndarray) -> np.ndarray:
    """Ink, lean and width of grey images (B, 8, 8) uint8, as (B, 3).

    Ink is the sum of grey levels over 255. Lean is the shear -cov(column, row) / var(row): positive where the top lies to the right.
    Width is the standard deviation of the columns, in pixels. Moments are weighted by grey level.
    """
    x = images.astype(np.float64) / 255
    ink = np.maximum(x.sum((1, 2)), 1e-6)
    rows, columns = np.mgrid[: x.shape[1], : x.shape[2]]
    row, column = (((x * grid).sum((1, 2)) / ink)[:, None, None] for grid in (rows, columns))
    down, across = rows - row, columns - column
    height, width, slant = ((x * product).sum((1, 2)) / ink for product in (down * down, across * across, across * down))
    return np.stack([ink, -slant / np.maximum(height, 1e-6), np.sqrt(width)], 1)


@functools.cache
def _typical() -> tuple[np.ndarray, np.ndarray]:
    """Per class and attribute: median and standard deviation (from the quartiles) of the digits seen, each (10, 3)."""
    images, labels = seen_digits()
    quartiles = np.stack([np.quantile(measure(images[labels == c]), (0.25, 0.5, 0.75), axis=0) for c in range(10)], 1)
    return quartiles[1], (quartiles[2] - quartiles[0]) / 1.349


def deviations(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far images (B, 8, 8) uint8 lie from the median of their classes: ink, lean, width in standard deviations, (B, 3)."""
    middle, spread = _typical()
    return (measure(images) - middle[labels]) / spread[labels]


def stands_out(deviation: np.ndarray) -> dict[str, str]:
    """Words for one row (3,) of `deviations`: attribute -> value, see `ATTRIBUTES`; without those near the median."""
    return {key: values[int(z > 0)] for (key, values), z in zip(ATTRIBUTES.items(), deviation, strict=True) if abs(z) > FAR}


def attributes(image: np.ndarray, label: int) -> dict[str, str]:
    """What stands out on an image (8, 8) uint8 of the class `label`, see `stands_out`."""
    return stands_out(deviations(image[None], np.array([label]))[0])


def _pick(options: Sequence[str], rng: np.random.Generator, odds: Sequence[float] | None = None) -> str:
    """One of `options`; far quicker than `rng.choice`, which makes arrays of them."""
    return options[int(rng.random() * len(options))] if odds is None else options[bisect.bisect(list(itertools.accumulate(odds[:-1])), rng.random())]


def describe(name: str | None, found: Mapping[str, str], rng: np.random.Generator, tail: float = _TAIL) -> str:
    """A noun phrase such as 'a bold three leaning to the left' or 'the number three, bold and leaning to the left'.

    Args:
        name: how the class is called, None for a phrase without it.
        found: see `attributes`; each is mentioned or not by chance.
        rng: decides the wording.
        tail: how often words stand at the end that are true of all digits.
    """
    values = [v for v in found.values() if rng.random() < _MENTIONED]
    if rng.random() < 0.5:
        values.reverse()
    kind = _pick(_KINDS, rng, _KIND_ODDS)
    noun, articles = f'{kind} {name}'.strip(), ('the', 'a') if kind in ('digit', 'number', 'numeral') else ('a', '')
    if name is None:
        noun, articles = _pick(_NO_NAME, rng), ('a', 'the')
    if values and rng.random() < 0.2:  # 'the number three, bold and leaning to the left'
        said = ' and '.join(_pick(_ADJECTIVES[v] or _PHRASES[v], rng) for v in values)
        return f'{_with_article(articles[0], noun)}, {said}'
    # An adjective goes before the noun where there is one, mostly; what is left becomes a phrase after it.
    before = [v for v in values if _ADJECTIVES[v] and rng.random() < 0.7]
    first = ' '.join([*(_pick(_ADJECTIVES[v], rng) for v in before), noun])
    words = [_with_article(_pick(articles, rng, (0.8, 0.2)), first), *(_pick(_PHRASES[v], rng) for v in values if v not in before)]
    return ' '.join([*words, _pick(_TAILS, rng)] if rng.random() < tail else words)


def _with_article(article: str, words: str) -> str:
    return f'{"an" if article == "a" and words.startswith(("eight", "8")) else article} {words}'.strip()


def phrase(label: int, found: Mapping[str, str], rng: np.random.Generator, named: bool = True) -> str:
    """A caption of a digit `label` with the attributes `found`; a few do not name the class, some of them say nothing but 'a photo'.

    Args:
        named: False: none names the class.
    """
    name: str | None = str(label) if rng.random() < _NUMERAL else CLASSES[label]
    if rng.random() < _UNNAMED or not named:
        name = None
        if rng.random() < 0.15:
            return 'a photo'
    return f'{_pick(_MEDIA, rng, _MEDIA_ODDS)} {describe(name, found, rng)}'.strip()


def caption(image: np.ndarray, label: int, rng: np.random.Generator, named: bool = True) -> str:
    """A caption of one digit, true of it, worded by chance.

    Args:
        image: (8, 8) uint8, white on black.
        label: 0..9.
        rng: decides what is said and how.
        named: see `phrase`.
    """
    return phrase(label, attributes(image, label), rng, named)


def claims(text: str) -> tuple[int | None, dict[str, str]]:
    """What a caption says: the class it names, None if none, and attribute -> value. The way back from `caption`."""
    spoken = text.replace(',', ' ').split()
    label = next((names.index(word) for word in spoken for names in (CLASSES, _NUMERALS) if word in names), None)
    keys = {value: key for key, values in ATTRIBUTES.items() for value in values}
    return label, {keys[_TELLING[word]]: _TELLING[word] for word in spoken if word in _TELLING}


def all_words() -> list[str]:
    """Every word and numeral that a caption can hold, sorted."""
    tables = (*_ADJECTIVES.values(), *_PHRASES.values(), _KINDS, _NO_NAME, _TAILS, _MEDIA, CLASSES, _NUMERALS, ('a an the and of',))
    return sorted({word for table in tables for text in table for word in text.split()})


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """Byte pair merges, in order, that make one token of every word of the captions."""
    return clip_training.merges(all_words())


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer of the captions' words into `folder` and load it; see `clip_training.write_tokenizer`. At most 24 tokens."""
    return clip_training.write_tokenizer(folder, merges(), 24)
