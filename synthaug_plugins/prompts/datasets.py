"""The 17 zero-shot data sets of He et al. (ICLR 2023): class names and wording.

Class names come from MMPretrain's category lists (WordNet ids for the ImageNets: from timm's lists), else from the tables in this room,
which repeat what the data sets themselves and CLIP's published prompt list say. Where a list of the tables gives a prompt name or hint,
that is CLIP's wording or ours.

What is stated where (the paper and its code give prompts for a few sets only):
- `template`, stated in paper or code: 'a photo of a {}' as the general form, EuroSAT, DTD, and ', a type of ...' for aircraft, birds, flowers,
  food and pets. ImageNet-Sketch's is ours.
- `sentence` (language enhancement), stated: EuroSAT, birds, ImageNet-Sketch. For aircraft, flowers, food and pets we add the type as birds have
  it. For the rest the paper prints 'a photo of a [SENTENCE]'; its code, where visible, has no 'a', since sentences bring their own article.
- `ensemble`: the lists of the paper's code for ImageNet, CIFAR, SUN397, Cars; CLIP's published ones for Caltech, DTD, EuroSAT, aircraft.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from synthaug_plugins.errors import DataError, RecipeError, nearest
from synthaug_plugins.prompts.names import ClassName, ClassTable, clean_label, read_names

_PHOTO, _SENTENCE = 'a photo of a {}', 'a photo of {}'


@dataclass(frozen=True)
class DataSetPrompts:
    """How one data set is spoken of.

    Attributes:
        classes: name of MMPretrain's category list, or of a table file in `tables/`.
        template: the simple prompt of a class name (B).
        sentence: the prompt made of a sentence (LE).
        ensemble: name of the template ensemble (Table A.15), or None: `template` alone.
    """

    classes: str
    template: str = _PHOTO
    sentence: str = _SENTENCE
    ensemble: str | None = None


def _typed(classes: str, kind: str, ensemble: str | None = None) -> DataSetPrompts:
    return DataSetPrompts(classes, f'{_PHOTO}, a type of {kind}', f'{_SENTENCE}, a type of {kind}', ensemble)


DATASETS: dict[str, DataSetPrompts] = {
    'cifar10': DataSetPrompts('CIFAR10_CATEGORIES', ensemble='cifar'),
    'cifar100': DataSetPrompts('CIFAR100_CATEGORIES', ensemble='cifar'),
    'caltech101': DataSetPrompts('CALTECH101_CATEGORIES', ensemble='caltech'),
    'caltech256': DataSetPrompts('caltech256.json', ensemble='caltech'),
    'imagenet': DataSetPrompts('imagenet_synsets.txt', ensemble='imagenet'),
    'sun397': DataSetPrompts('SUN397_CATEGORIES', ensemble='sun'),
    'aircraft': _typed('FGVCAIRCRAFT_CATEGORIES', 'aircraft', 'aircraft'),
    'birdsnap': _typed('birdsnap.txt', 'bird'),
    'cars': DataSetPrompts('STANFORDCARS_CATEGORIES', ensemble='cars'),
    'cub': _typed('CUB_CATEGORIES', 'bird'),
    'flowers': _typed('flowers.txt', 'flower'),
    'food': _typed('FOOD101_CATEGORIES', 'food'),
    'pets': _typed('OxfordIIITPet_CATEGORIES', 'pet'),
    'dtd': DataSetPrompts('DTD_CATEGORIES', '{} texture', '{} texture', 'dtd'),
    'eurosat': DataSetPrompts('eurosat.json', 'a centered satellite photo of {}', 'a centered satellite photo of {}', 'eurosat'),
    'imagenet_sketch': DataSetPrompts('imagenet_synsets.txt', 'a sketch of a {}', 'sketch of {}'),
    'imagenet_r': DataSetPrompts('imagenet_r_synsets.txt', ensemble='caltech'),
}


def dataset_prompts(dataset: str) -> DataSetPrompts:
    """The wording of a data set.

    Raises:
        RecipeError: unknown; the nearest known ones are offered.
    """
    if dataset not in DATASETS:
        raise RecipeError(f'dataset = {dataset!r} has no prompts of its own.', nearest(str(dataset), DATASETS))
    return DATASETS[dataset]


@lru_cache(maxsize=32)
def dataset_names(dataset: str) -> ClassTable:
    """The classes of a data set in its own order; for the ImageNets labels are WordNet ids.

    Raises:
        RecipeError: an unknown data set.
        DataError: the installed timm or MMPretrain does not carry the list of its classes.
    """
    classes = dataset_prompts(dataset).classes
    where = f'the table of {dataset}'
    own = Path(__file__).parent / 'tables' / classes
    if own.is_file():
        return read_names(own)
    if classes.endswith('.txt'):
        return ClassTable(_imagenet(classes), where)
    override = Path(__file__).parent / 'tables' / f'{dataset}.json'  # better words and hints for some of the classes
    better = dict(read_names(override)) if override.is_file() else {}
    # A label becomes a folder: 'F-16A/B' is spoken so, but called 'F-16A_B'.
    return ClassTable((better.get(c) or ClassName(c.replace('/', '_'), _words(c)) for c in _categories(classes)), where)


def _words(category: str) -> str:
    """Words of a category: SUN397's trailing indoor and outdoor go to the front, where English has them."""
    return re.sub(r'^(.*) (indoor|outdoor)$', r'\2 \1', clean_label(category))


def _imagenet(synsets: str) -> Iterator[ClassName]:
    """ImageNet's classes by WordNet id. MMPretrain's simple names call two pairs of classes alike: those get their first WordNet lemma."""
    simple, full = _categories('IMAGENET_SIMPLE_CATEGORIES'), _categories('IMAGENET_CATEGORIES')
    index = {synset: i for i, synset in enumerate(package_file('timm', f'data/_info/{_ALL_SYNSETS}').read_text().split())}
    for synset in package_file('timm', f'data/_info/{synsets}').read_text().split():
        i = index[synset]
        name = simple[i] if simple.count(simple[i]) == 1 else full[i].split(',')[0]
        text, _, hint = name.replace(' / ', ' or ').partition(' (')
        yield ClassName(synset, text, hint.rstrip(')'))


_ALL_SYNSETS = 'imagenet_synsets.txt'


@lru_cache(maxsize=1)
def _category_lists() -> dict[str, tuple[str, ...]]:
    # The file alone: importing mmpretrain.datasets would load torch, MMCV and all of MMPretrain.
    return {k: v for k, v in runpy.run_path(str(package_file('mmpretrain', 'datasets/categories.py'))).items() if isinstance(v, tuple)}


def _categories(name: str) -> tuple[str, ...]:
    return _category_lists()[name]


def package_file(package: str, file: str) -> Path:
    """A data file of an installed package, without importing the package; DataError where it is not there. file: relative to the package's folder."""
    spec = importlib.util.find_spec(package)
    path = Path((spec.submodule_search_locations or [''])[0], file) if spec else None
    if path is None or not path.is_file():
        raise DataError(f'The class names need {file} of the package {package!r}, which is not there.', f'Run: pip install --upgrade {package}')
    return path
