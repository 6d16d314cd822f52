"""Long tails: classes are filled up to a number, copies are what they are, and a comparison of unequal classes says so wherever it reports."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learned_embeddings import folder_of_images

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete, load_recipe, prepare
from synthaug_plugins.errors import DataError, RecipeError, SynthAugError
from synthaug_plugins.real_images import RealImages, decode_rgb
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.store.reader import StoreReader
from synthaug_plugins.training.records import read_records

EDM = {'type': 'EDM', 'model': 'embedded:digits_edm', 'sampler': {'num_steps': 2}}
COPIES = {'type': 'Copies'}


@pytest.fixture(scope='module')
def real(tmp_path_factory: pytest.TempPathFactory) -> RealImages:
    return folder_of_images(tmp_path_factory.mktemp('real'), {'five': 7, 'one': 4, 'two': 2}, (9, 12))


def recipe(real: RealImages | None, generator: dict[str, Any] = COPIES, **keys: Any) -> dict[str, Any]:
    return complete({'generator': generator, 'data': str(real.root) if real else None, 'inspectors': [], **keys})


def wanted(run: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in run.plan.parts:
        total[part.class_name] += part.target
    return dict(total)


# --- fill_to


@pytest.mark.parametrize('generator', [COPIES, EDM], ids=['of sources', 'from noise'])
@pytest.mark.parametrize(('fill_to', 'lacking'), [('largest', {'one': 3, 'two': 5}), (5, {'one': 1, 'two': 3}), (9, {'five': 2, 'one': 5, 'two': 7})])
def test_every_class_gets_what_its_real_images_lack(real: RealImages, generator: dict[str, Any], fill_to: Any, lacking: dict[str, int]) -> None:
    run = prepare(recipe(real, generator, fill_to=fill_to, block_size=4))
    assert wanted(run) == lacking
    assert run.plan.classes == real.classes  # a full class keeps its label


@pytest.mark.parametrize(
    ('keys', 'says'),
    [
        ({'fill_to': 0}, 'fill_to = 0 is no number'),
        ({'fill_to': True}, 'fill_to = True is no number'),
        ({'fill_to': 'most'}, "fill_to = 'most' is no number"),
        ({'fill_to': 5, 'per_class': 3}, 'per_class = 3 and fill_to = 5'),
        ({'fill_to': 5, 'per_source': 3}, 'per_source = 3 and fill_to = 5'),
        ({'per_class': None}, 'neither per_class nor per_source nor fill_to'),
    ],
)
def test_only_one_way_to_say_how_many_is_taken(real: RealImages, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe(real, **keys)


def test_nothing_to_fill_and_nothing_to_count_are_refused(real: RealImages) -> None:
    with pytest.raises(DataError, match=r'no class of .* lacks images, the smallest has 2'):
        prepare(recipe(real, fill_to=2))
    with pytest.raises(RecipeError, match='counts real images, but the recipe names none'):
        prepare(recipe(None, EDM, fill_to='largest'))


# --- copies


def test_copies_are_the_real_images_in_turn_to_the_pixel(real: RealImages, tmp_path: Path) -> None:
    options = {'data': str(real.root)}
    store = generate(load_recipe(find_recipe('oversampling', 'generate'), options), tmp_path / 's', 'cpu', quiet=True)
    rows = store.index().to_pylist()
    # 5 of the 2 twos: each twice, one of them once more
    assert Counter(row['source'] for row in rows if row['source'].startswith('two/')) == dict(zip(real.ids('two'), (3, 2), strict=True))
    reader = StoreReader(store.folder)
    for row in rows:
        assert np.array_equal(decode_rgb(io.BytesIO(reader.read_image(row))), real.load(row['source']))
    assert len(read_records({'store': str(store.folder)}, real.classes)) == 8  # ready to be trained on, the full class without any


def test_what_would_change_the_pixels_of_copies_is_said(real: RealImages) -> None:
    said: list[str] = []
    prepare(recipe(real, per_source=1, image={'format': 'jpg', 'size': 8}), said.append)
    assert len(said) == 2 and 'only' in said[0]
    with pytest.raises(SynthAugError, match='starts from real images'):
        prepare(recipe(None, per_class=1))
