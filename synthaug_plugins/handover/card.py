"""The data card of a store: a README with the head that a hub reads. Everything in it is what the store says of itself; nothing is guessed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from synthaug_plugins.errors import StoreError
from synthaug_plugins.handover import licences
from synthaug_plugins.handover.figures import Figures
from synthaug_plugins.handover.images import refuse_inside
from synthaug_plugins.handover.markdown import fenced, plain, table
from synthaug_plugins.handover.origin import Sources, models, prompts, sources, without_paths
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.reasons import printable
from synthaug_plugins.store.selection import Selection, select
from synthaug_plugins.store.store import Store

MARK = '<!-- synthaug data card of the store {} -->'
"""Stands in every card, with the fingerprint of its store: only such a file is replaced."""
COLUMNS = ('id', 'label', 'source', 'prompt')
"""Columns that a selection must have for its card."""
_SIZES = (('n<1K', 10**3), ('1K<n<10K', 10**4), ('10K<n<100K', 10**5), ('100K<n<1M', 10**6), ('1M<n<10M', 10**7), ('10M<n<100M', 10**8), ('100M<n<1B', 10**9))
Counts = Mapping[str, Mapping[str, Any]]
"""What `Store.counts` says."""
_CLASSES_SAID, _PROMPTS_SAID, _SETTINGS_SAID = 1000, 8, 20000  # rows; rows; letters


def data_card(store: Store, selection: Selection | None = None, licence: str | None = None, figures: Sequence[Figures] = ()) -> str:
    """The card as Markdown: what made the store, from which models and real images, prompts, counts, rejections, cost, figures and limits.

    Args:
        selection: the images that it is about, with the columns `COLUMNS`; default: all kept ones.
        licence: of the images, as their maker decides it: an identifier of the hub or a name. It is never taken from a model.
        figures: see `figures.read_figures`.
    """
    selection = selection or select(store, allow_empty=True, columns=COLUMNS)
    counts, real = store.counts(), sources(store, selection.table)
    parts = [
        _head(store, selection, licence),
        MARK.format(store.plan.fingerprint),
        f'# {plain(store.place.label)}',
        _summary(store, selection),
        *_made(store),
        *_real(real),
        *_prompts(selection),
        *_classes(selection, counts),
        *_cost(store),
        *(part for one in figures for part in _figures(one)),
        '## Limits',
        '\n'.join(f'- {sentence}' for sentence in _limits(store, counts, real, licence, {one.kind for one in figures})),
        *_settings(store),
    ]
    return '\n\n'.join(parts) + '\n'


def write_card(text: str, out: str | Path) -> None:
    """Write a card; of the files that are there, only a card is replaced.

    Raises:
        StoreError: another file is there, or it is in a store; disk full, no permission.
    """
    path = Path(out).expanduser()
    refuse_inside(path)
    if path.is_symlink() or (path.exists() and not (path.is_file() and is_card(path.read_bytes()))):
        raise StoreError(f'{str(path)!r} exists and is no data card.', 'Give another name; nothing was touched.')
    write_whole(path, text.encode())


def is_card(data: bytes, fingerprint: str | None = None) -> bool:
    """Whether a file is a card of ours; with a fingerprint, of that very store."""
    mark = MARK.format(fingerprint) if fingerprint else MARK.partition('{}')[0]
    return mark.encode() in data


def _head(store: Store, selection: Selection, licence: str | None) -> str:
    """What a hub reads: YAML between two lines."""
    n = len(selection.table)
    head = {
        **licences.head(None if licence is None else printable(licence)),
        'pretty_name': printable(store.place.label),
        'task_categories': ['image-classification'],
        'annotations_creators': ['machine-generated'],
        'size_categories': [next((name for name, below in _SIZES if n < below), '1B<n<10B')],
        'tags': ['synthetic', 'synthaug-plugins'],
    }
    return f'---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---'


def _summary(store: Store, selection: Selection) -> str:
    held = sum(n > 0 for n in selection.counts.values())
    chosen = '' if selection.where is None else f' They are a selection: {plain(selection.text)}.'
    return f'{len(selection.table)} images of {held} classes, made by the generator {plain(_generator(store))} of synthaug-plugins.{chosen}'


def _generator(store: Store) -> str:
    generator = store.plan.recipe.get('generator')
    return str(generator.get('type', 'unnamed')) if isinstance(generator, Mapping) else 'unnamed'


def _made(store: Store) -> Iterator[str]:
    """What made it: models, versions, machine, date."""
    made_by, image = store.made_by, store.plan.recipe.get('image')
    yield '## What made it'
    if named := models(store):
        rows = [(m.role, m.name, m.revision or '–', m.sha256 or '–', m.licence or 'not stated') for m in named]
        yield table(['role', 'model', 'revision', 'SHA-256', 'licence of the model'], rows)
    else:
        yield 'No model is named.'
    versions = made_by.get('versions')
    facts = {
        'synthaug-plugins': made_by.get('synthaug_plugins'),
        'created': made_by.get('created'),
        'device': made_by.get('device'),
        'image files': f'{image.get("format")}, size {image.get("size")}' if isinstance(image, Mapping) else None,
        'seed': store.plan.recipe.get('seed'),
        'inspected by': ', '.join(_inspectors(store)) or 'nothing',
        'score columns': ', '.join(sorted(store.score_column_names())) or 'none',
        'versions': ', '.join(f'{name} {version}' for name, version in versions.items()) if isinstance(versions, Mapping) else None,
        'fingerprint of the store': store.plan.fingerprint,
    }
    yield table(['', ''], [(name, str(value)) for name, value in facts.items() if value is not None])


def _inspectors(store: Store) -> list[str]:
    found = store.plan.recipe.get('inspectors')
    return [str(one.get('type')) for one in found if isinstance(one, Mapping)] if isinstance(found, list | tuple) else []


def _real(found: Sources | None) -> Iterator[str]:
    yield '## Real images'
    if found is None:
        yield 'The plan names none. What was learned from real images before, such as words or embeddings, stands under Settings.'
        return
    content = f' SHA-256 over the names and contents of all that decided these: {plain(found.sha256)}.' if found.sha256 else ''
    starts = f'{found.used} real images are what these start from (column source)' if found.used else 'No image starts from one real image'
    yield f'{starts}; the generator was given {found.given}.{content} They are not part of this data.'


def _prompts(selection: Selection) -> Iterator[str]:
    different, some = prompts(selection.table, _PROMPTS_SAID)
    yield '## Prompts'
    if not different:
        yield 'None.'
        return
    yield f'{different} different ones' + ('; the most frequent:' if different > len(some) else ':')
    yield table(['prompt', 'images'], some)


def _classes(selection: Selection, counts: Counts) -> Iterator[str]:
    rows = [(name, selection.counts[name], c['kept'], c['rejected'], c['target']) for name, c in counts.items()]
    yield '## Classes'
    yield table(['class', 'images here', 'kept in the store', 'rejected', 'asked for'], rows[:_CLASSES_SAID])
    if len(rows) > _CLASSES_SAID:
        yield f'And {len(rows) - _CLASSES_SAID} more classes.'
    reasons: Counter[str] = Counter()
    for c in counts.values():
        reasons.update(c['reasons'])
    yield '## Rejected'
    yield table(['reason', 'images'], reasons.most_common()) if reasons else 'No image was rejected.'


def _cost(store: Store) -> Iterator[str]:
    yield '## Cost'
    cost = store.made_by.get('cost')
    if not cost:
        yield 'Not noted.'
        return
    each = f', {cost["network_images"] / cost["images"]:.4g} network evaluations per image' if cost['images'] and cost['network_images'] else ''
    rate = f', {cost["images"] / cost["seconds"]:.3g} images/s' if cost['seconds'] else ''
    device = plain(store.made_by.get('device') or 'a device that is not named')
    yield f'{cost["images"]} images were made, rejected ones included, in {_time(cost["seconds"])} of its workers on {device}{rate}{each}.'


def _time(seconds: float) -> str:
    return f'{seconds:.3g} seconds' if seconds < 120 else f'{seconds / 60:.3g} minutes' if seconds < 7200 else f'{seconds / 3600:.4g} hours'


def _figures(one: Figures) -> Iterator[str]:
    yield f'## {plain(one.title)}'
    yield plain(one.about, 1000)
    yield table(['', ''], one.rows)
    if one.notes:
        yield '\n'.join(f'- {plain(note, 1000)}' for note in one.notes)


def _limits(store: Store, counts: Counts, real: Sources | None, licence: str | None, known: set[str]) -> Iterator[str]:
    """What a user of the data must know, as far as it can be known."""
    yield 'A label is what was asked for. No person looked at these images; what inspected them stands above.'
    yield 'What the models above were trained on is not known here. Their biases, and images that they know by heart, can come back in these.'
    if real is not None:
        yield 'Images that start from a real one can show it again. What holds for the real images (rights, consent, privacy) holds for these.'
    if 'evaluation' not in known:
        yield 'How true, diverse and rightly labelled they are was not measured here.'
    if 'audit' not in known:
        yield 'They were not searched here for copies of real images, neither of those that models or classifiers learn from, nor of those of any test.'
    if licence is None:
        yield 'No licence of the images was stated. The licences of the models may bind what they make.'
    else:
        yield f'The licence of the images, {plain(licence)}, is what who published them says; the licences of the models may bind what they make.'
    if waiting := len(store.unfinished()):
        yield f'The store is unfinished: {waiting} of {len(store.plan.blocks)} blocks are missing.'
    if short := [name for name, c in counts.items() if c['kept'] < c['target']]:
        shown = ', '.join(plain(name) for name in short[:20]) + (f' and {len(short) - 20} more' if len(short) > 20 else '')
        yield f'{len(short)} classes have fewer images than were asked for: {shown}.'


def _settings(store: Store) -> Iterator[str]:
    """The plan's recipe: with it, the models and the real images the same images are made again."""
    text = json.dumps(without_paths(store.plan.recipe), indent=1, ensure_ascii=True)
    yield '## Settings'
    if len(text) > _SETTINGS_SAID:
        text = text[:_SETTINGS_SAID] + '\n...'
    yield fenced(text, 'json')
