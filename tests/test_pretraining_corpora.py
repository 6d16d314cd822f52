"""Corpora to pre-train on have the paper's sizes and names, no filter, and take names of one's own."""

from __future__ import annotations

import pytest

from synthaug_plugins.engine.recipe import load_recipe
from synthaug_plugins.errors import DataError
from synthaug_plugins.prompts.datasets import dataset_names
from synthaug_plugins.prompts.imagenet_2k import imagenet_2k
from synthaug_plugins.prompts.names import ClassName
from synthaug_plugins.recipes import find_recipe


@pytest.mark.parametrize(('name', 'classes', 'images'), [('cifar100', 100, 1_200_000), ('imagenet1k', 1000, 1_200_000), ('imagenet2k', 2000, 2_400_000)])
def test_a_corpus_has_the_papers_size_language_enhancement_and_no_filter(name: str, classes: int, images: int) -> None:
    recipe = load_recipe(find_recipe(f'pretrain_{name}', 'generate'))
    assert (len(recipe['classes']), len(recipe['classes']) * recipe['per_class']) == (classes, images)
    assert recipe['generator']['prompts']['type'] == 'synthaug_plugins.Enhanced'
    assert [inspector['type'] for inspector in recipe['inspectors']] == ['synthaug_plugins.ImageSanity']


def test_own_class_names_take_the_place_of_the_data_sets() -> None:
    recipe = load_recipe(find_recipe('pretrain_cifar100', 'generate'), {'classes': ['red fox', 'grey wolf'], 'generator.prompts.dataset': None})
    assert recipe['classes'] == ['red fox', 'grey wolf']


def test_the_larger_label_space_is_imagenet_1k_and_others_drawn_by_a_seed() -> None:
    names, table = imagenet_2k(), dataset_names('imagenet')
    assert names[:1000] == [entry.phrase for entry in table.values()]
    assert len({name.casefold() for name in names}) == 2000
    assert all(ClassName(name, name).name == name for name in names)
    assert imagenet_2k(0) == names
    assert imagenet_2k(1)[:1000] == names[:1000]
    assert len(set(imagenet_2k(1)) - set(names)) > 900
    with pytest.raises(DataError, match='cannot be drawn'):
        imagenet_2k(more=50_000)
