"""ImageNet-2K of He et al. (ICLR 2023): the names of ImageNet-1K and as many others, drawn from ImageNet-21K."""

from __future__ import annotations

import random

from synthaug_plugins.errors import DataError
from synthaug_plugins.prompts.datasets import dataset_names, package_file


def imagenet_2k(seed: int = 0, more: int = 1000) -> list[str]:
    """Class names as words, those of ImageNet-1K first, in its order; then `more` of ImageNet-21K that it does not have, by their first WordNet lemma.

    The paper draws at random without saying which; `seed` makes the draw repeatable. A synset of the 1K, and a word that is taken, are not drawn: both
    would be a class twice.

    Args:
        seed: of the draw.
        more: 1 to about 19,000.

    Raises:
        DataError: the installed timm carries no list of ImageNet-21K, or `more` is out of range.
    """
    table = dataset_names('imagenet')
    synsets = frozenset(table)
    names = [entry.phrase for entry in table.values()]
    taken = {text.casefold() for entry in table.values() for text in (entry.text, entry.phrase)}
    lemmas = dict(line.split('\t', 1) for line in _lines('imagenet_synset_to_lemma.txt'))
    others: list[str] = []
    for synset in _lines('imagenet21k_goog_synsets.txt'):
        word = lemmas.get(synset, '').split(',')[0].strip()
        if synset in synsets or word.casefold() in taken or not word.replace(' ', '').replace('-', '').replace("'", '').isalnum():
            continue
        taken.add(word.casefold())
        others.append(word)
    if not 1 <= more <= len(others):
        raise DataError(f'more = {more} names of ImageNet-21K cannot be drawn.', f'Use 1 to {len(others)}.')
    return names + random.Random(seed).sample(others, more)


def _lines(file: str) -> list[str]:
    return package_file('timm', f'data/_info/{file}').read_text(encoding='utf-8').splitlines()
