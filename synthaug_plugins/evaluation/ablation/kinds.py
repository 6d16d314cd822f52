"""What a comparison can make, and how each kind of it is made: by the functions of the commands of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.learn import MODEL, learn
from synthaug_plugins.engine.learn import save_stand_in as save_denoiser_stand_in
from synthaug_plugins.engine.learn_embeddings import FOLDER as EMBEDDINGS
from synthaug_plugins.engine.learn_embeddings import learn_image_embeddings
from synthaug_plugins.engine.learn_embeddings import save_stand_in as save_embeddings_stand_in
from synthaug_plugins.engine.learn_embeddings_recipe import load_embeddings_recipe, prepare_embeddings
from synthaug_plugins.engine.learn_erasure import FOLDER as ERASURES
from synthaug_plugins.engine.learn_erasure import learn_erasure
from synthaug_plugins.engine.learn_erasure_recipe import load_erasure_recipe
from synthaug_plugins.engine.learn_minority import FOLDER as CLASSIFIER
from synthaug_plugins.engine.learn_minority import learn_minority
from synthaug_plugins.engine.learn_minority import save_stand_in as save_minority_stand_in
from synthaug_plugins.engine.learn_minority_recipe import load_minority_recipe, prepare_minority
from synthaug_plugins.engine.learn_recipe import load_learn_recipe
from synthaug_plugins.engine.learn_words import WORDS, learn_class_words, save_stand_in
from synthaug_plugins.engine.learn_words_recipe import load_words_recipe, prepare_words
from synthaug_plugins.engine.recipe import load_recipe, prepare
from synthaug_plugins.evaluation.ablation import trained
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.plan import Plan, make_blocks
from synthaug_plugins.store.store import Store


def images_of_data(recipe: Mapping[str, Any], manager: pluggy.PluginManager | None = None) -> Iterable[Path]:
    """The files of a recipe's `data`, a folder of class folders; none without it."""
    if recipe['data'] is None:
        return ()
    images = RealImages(recipe['data'])
    return (images.root / i for name in images.classes for i in images.ids(name))


@dataclass(frozen=True)
class Kind:
    """How a kind of thing is made.

    Attributes:
        load: (recipe file, options by dotted key) -> complete recipe; refuses what is wrong.
        make: (complete recipe, folder, device, plugin manager, quiet); goes on where a killed call stopped.
        gives: what is meant by its name: a file in its folder, or '' for the folder.
        stand_in: (complete recipe, place, classes, plugin manager): checks all that can be known before it is made, and writes something of its form to
            the place that its name stands for. None: what would use it is checked without.
        reads: (complete recipe, plugin manager) -> the real image files that it is made from.
    """

    load: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    make: Callable[[Mapping[str, Any], Path, str, pluggy.PluginManager | None, bool], object]
    gives: str
    stand_in: Callable[[Mapping[str, Any], Path, tuple[str, ...], pluggy.PluginManager | None], object] | None
    reads: Callable[[Mapping[str, Any], pluggy.PluginManager | None], Iterable[Path]] = images_of_data


def _store_stand_in(recipe: Mapping[str, Any], place: Path, classes: tuple[str, ...], manager: pluggy.PluginManager | None) -> None:
    prepare(recipe)
    Store.create(place, Plan(classes, make_blocks(classes, 1), {}), {})


MAKES: dict[str, Kind] = {
    'store': Kind(
        load_recipe,
        lambda recipe, folder, device, manager, quiet: generate(recipe, folder, device, manager.hook if manager else None, quiet),
        '',
        _store_stand_in,
    ),
    'words': Kind(
        load_words_recipe,
        lambda recipe, folder, device, manager, quiet: learn_class_words(recipe, folder, device, quiet),
        WORDS,
        lambda recipe, place, classes, manager: save_stand_in(prepare_words(recipe), place),
    ),
    'embeddings': Kind(
        load_embeddings_recipe,
        lambda recipe, folder, device, manager, quiet: learn_image_embeddings(recipe, folder, device, quiet),
        EMBEDDINGS,
        lambda recipe, place, classes, manager: save_embeddings_stand_in(prepare_embeddings(recipe), place),
    ),
    'minority': Kind(
        load_minority_recipe,
        lambda recipe, folder, device, manager, quiet: learn_minority(recipe, folder, device, quiet),
        CLASSIFIER,
        lambda recipe, place, classes, manager: save_minority_stand_in(prepare_minority(recipe), place, classes),
    ),
    'erasure': Kind(
        load_erasure_recipe,
        lambda recipe, folder, device, manager, quiet: learn_erasure(recipe, folder, device, quiet),
        ERASURES,
        None,
        lambda recipe, manager: (),
    ),
    'denoiser': Kind(
        load_learn_recipe,
        lambda recipe, folder, device, manager, quiet: learn(recipe, folder, device, quiet),
        MODEL,
        lambda recipe, place, classes, manager: save_denoiser_stand_in(recipe, place, classes),
    ),
    'training': Kind(trained.load, trained.make, trained.BACKBONE, trained.stand_in, trained.reads),
}
