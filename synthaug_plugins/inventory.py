"""Everything that a recipe can name, with a line on each: `synthaug list`."""

from __future__ import annotations

import importlib
import inspect
from fnmatch import fnmatch
from typing import Any


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or '').strip().split('\n')[0]


def inventory(pattern: str = '*') -> dict[str, dict[str, str]]:
    """Section -> name -> one line of help, for the names that match `pattern` (with * and ?, any case)."""
    from synthaug_plugins.diffusion.presets import PRESETS
    from synthaug_plugins.engine.learn_embeddings_recipe import KEYS as EMBEDDINGS_KEYS
    from synthaug_plugins.engine.learn_erasure_recipe import KEYS as ERASURE_KEYS
    from synthaug_plugins.engine.learn_minority_recipe import KEYS as MINORITY_KEYS
    from synthaug_plugins.engine.learn_recipe import KEYS as LEARN_KEYS
    from synthaug_plugins.engine.learn_words_recipe import KEYS as WORDS_KEYS
    from synthaug_plugins.engine.recipe import KEYS
    from synthaug_plugins.evaluation.protocol import KEYS as COMPARE_KEYS
    from synthaug_plugins.plugins import BUILT_IN, register_nouns
    from synthaug_plugins.recipes import ROOT, shipped_recipes
    from synthaug_plugins.registry import DISTANCES, GENERATORS, GUIDANCE, INSPECTORS, PROMPTS
    from synthaug_plugins.weights import CARD, EMBEDDED, embedded_folder, embedded_models, read_json

    register_nouns()
    sections: dict[str, dict[str, str]] = {}
    nouns = {'generators': GENERATORS, 'guidance': GUIDANCE, 'prompt sources': PROMPTS, 'inspectors': INSPECTORS, 'distances': DISTANCES}
    for title, registry in nouns.items():
        registry.import_from_location()
        sections[title] = {name: _first_line(cls) for name, cls in sorted(registry.module_dict.items())}
    sections['recipes'] = {name: _first_line_of_file(ROOT / name) for name in shipped_recipes()}
    models = [EMBEDDED + name for name in embedded_models()]
    sections['embedded models'] = {name: str(read_json(embedded_folder(name) / CARD)['what']) for name in models}
    sections['sampler presets'] = {name: preset.what for name, preset in PRESETS.items()}
    sections['keys of a generation recipe'] = dict(KEYS)
    sections['keys of a recipe of synthaug learn edm'] = dict(LEARN_KEYS)
    sections['keys of a recipe of synthaug learn words'] = dict(WORDS_KEYS)
    sections['keys of a recipe of synthaug learn embeddings'] = dict(EMBEDDINGS_KEYS)
    sections['keys of a recipe of synthaug learn erasure'] = dict(ERASURE_KEYS)
    sections['keys of a recipe of synthaug learn minority'] = dict(MINORITY_KEYS)
    sections['keys of a recipe of synthaug compare'] = dict(COMPARE_KEYS)
    for key, module in BUILT_IN.items():
        sections[f'keys of synthaug = dict({key}=dict(...)) in a training recipe'] = dict(importlib.import_module(module).OPTIONS)
    found = {title: {n: t for n, t in entries.items() if fnmatch(n.lower(), pattern.lower())} for title, entries in sections.items()}
    return {title: entries for title, entries in found.items() if entries}


def _first_line_of_file(path: Any) -> str:
    return path.read_text(encoding='utf-8').lstrip().strip('"\'#').split('\n')[0].strip(' "\'#')
