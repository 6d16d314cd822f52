"""A data card says what a store says of itself, all of it, and nothing that a stranger wrote becomes markup."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from test_store import CLASSES, make_rows

from conftest import Say
from synthaug_plugins.errors import DataError, StoreError
from synthaug_plugins.handover.card import data_card, write_card
from synthaug_plugins.handover.figures import read_figures
from synthaug_plugins.handover.markdown import fenced, plain
from synthaug_plugins.handover.origin import models, without_path
from synthaug_plugins.store.cost import RunCost
from synthaug_plugins.store.identity import identity
from synthaug_plugins.store.plan import Plan, make_blocks
from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

HUB = {'name': 'maker/model', 'revision': 'c0ffee', 'licence': 'openrail++'}
FOLDER = {'name': '/home/ann/models/judge', 'sha256': 'ab' * 32, 'licence': None}
HOSTILE = (
    '</td><script>alert(1)</script>|[click](https://evil.example)![x](//evil.example/p.png) www.evil.example `code` **b** @ann :bomb: $x$ &lt; \x1b[2J\n# head'
)
MARKDOWN = MarkdownIt('commonmark', {'html': True}).enable('table')


def make(folder: Path, classes: tuple[str, ...] = CLASSES, prompt: str | None = None, recipe: dict[str, Any] | None = None, made_by: Any = None) -> Store:
    """A store of real images of a class each, every third try rejected; its last block is missing where `prompt` is None."""
    sources = {name: ['real/0.png', 'real/1.png', 'real/2.png'] for name in classes}
    recipe = recipe or {
        'generator': {'type': 'RealGuidance', 'model': HUB},
        'inspectors': [{'type': 'ClipFilter', 'model': FOLDER}],
        'seed': 7,
        'sources_sha256': 'cd' * 32,
    }
    store = Store.create(
        folder,
        Plan(classes, make_blocks(classes, 4, sources, 4), recipe),
        made_by or {'device': 'one GPU', 'created': '2026-01-02', 'recipe': {'data': '/home/ann/secret'}},
    )
    for block in store.unfinished()[: None if prompt else -1]:
        rows = make_rows(block)
        store.publish(block, [replace(row, request=replace(row.request, prompt=prompt or row.request.prompt)) for row in rows], False)
    store.add_cost(RunCost(15, 7200, 8, 600))
    return store


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make(tmp_path_factory.mktemp('card') / 'pets')


def cells(card: str) -> list[list[str]]:
    """Every row of every table, as a reader sees it."""
    found: list[list[str]] = []
    tokens = MARKDOWN.parse(card)
    for kind, token in zip([t.type for t in tokens], tokens, strict=True):
        if kind == 'tr_open':
            found.append([])
        elif kind == 'inline' and found and token.level > 3:
            found[-1].append(''.join(child.content for child in token.children or ()))
    return found


def test_the_card_says_what_made_a_store_and_what_it_cost(store: Store) -> None:
    card = data_card(store, licence='CC-BY-4.0')
    head = yaml.safe_load(card.split('---')[1])
    assert head['license'] == 'cc-by-4.0'
    assert head['pretty_name'] == 'pets'
    assert head['size_categories'] == ['n<1K']
    rows = cells(card)
    assert ['generator.model', 'maker/model', 'c0ffee', '–', 'openrail++'] in rows
    assert ['inspectors.0.model', '…/judge', '–', 'ab' * 32, 'not stated'] in rows
    assert ['inspected by', 'ClipFilter'] in rows
    assert ['one', '4', '4', '1', '4'] in rows  # here, kept, rejected, asked for
    assert ['three', '0', '0', '0', '4'] in rows
    assert ['blank', '2'] in rows
    assert ['a two', '4'] in rows
    assert '2 real images are what these start from' in card
    assert 'the generator was given 3' in card
    assert '15 images were made, rejected ones included, in 2 hours of its workers on one GPU' in card
    assert '40 network evaluations per image' in card
    assert '1 of 3 blocks are missing' in card
    assert '1 classes have fewer images than were asked for: three.' in card
    assert 'home' not in card  # no folder of the machine that made it
    assert 'ann' not in card.replace('annotations', '')


def test_a_licence_is_never_taken_from_a_model(store: Store) -> None:
    card = data_card(store)
    assert 'license' not in yaml.safe_load(card.split('---')[1])
    assert 'No licence of the images was stated' in card
    ours = yaml.safe_load(data_card(store, licence='Ours: 1.0 "x"').split('---')[1])
    assert (ours['license'], ours['license_name']) == ('other', 'Ours: 1.0 "x"')


def test_a_selection_has_a_card_of_its_own(store: Store) -> None:
    card = data_card(store, select(store, "class = 'one' and seed > 0", allow_empty=True))
    assert '4 images of 1 classes' in card
    assert ['two', '0', '4', '1', '4'] in cells(card)
    assert 'seed &gt; 0' in card


def test_nothing_that_a_store_says_becomes_markup(tmp_path: Path) -> None:
    name = HOSTILE.replace('/', '∕').replace('\n', '').replace('\x1b', '')
    hostile = {'name': HOSTILE, 'sha256': HOSTILE, 'licence': HOSTILE}
    recipe = {'generator': {'type': HOSTILE, 'model': hostile, 'x': '```\n<script>'}, 'inspectors': [{'type': HOSTILE}], 'image': {'format': HOSTILE}}
    store = make(tmp_path / '[a](b) <b>', (name, 'two'), HOSTILE, recipe, {'device': HOSTILE, 'created': [HOSTILE], 'versions': {HOSTILE: HOSTILE}})
    card = data_card(store, licence=HOSTILE)
    assert len(yaml.safe_load_all(card.split('\n---\n')[0]).__next__()) == 7
    tokens = MARKDOWN.parse(card.partition('---\n\n')[2])
    assert [t.content.strip() for t in tokens if t.type == 'html_block'] == [f'<!-- synthaug data card of the store {store.plan.fingerprint} -->']
    assert {t.type for t in tokens if t.type.startswith('heading')} == {'heading_open', 'heading_close'}
    assert sum(t.type == 'heading_open' for t in tokens) == 9
    inline = {child.type for t in tokens for child in t.children or ()}
    assert inline <= {'text', 'text_special'}
    texts = [''.join(child.content for child in t.children or ()) for t in tokens if t.type == 'inline']
    assert any(HOSTILE.replace('\n', '\\n').replace('\x1b', '\\x1b') in text for text in texts)
    assert [t.info for t in tokens if t.type == 'fence'] == ['json']
    assert '\x1b' not in card
    # What GitHub and hubs make a link, a mention or a formula of without markup.
    body = card.partition('---\n\n')[2].partition('## Settings')[0]
    assert all(mark not in body for mark in ('https:', 'www.', ' @ann', ' :bomb', ' $x'))


def test_no_text_opens_or_ends_a_block() -> None:
    assert [t.type for t in MARKDOWN.parse(fenced('````\n# x', 'json'))] == ['fence']
    for text in ('1. x', '- x', '+ x', '# x', '> x', '    x', '-', '7.', '1.5', '-0.5'):
        tokens = MARKDOWN.parse(f'- {plain(text)}\n')
        assert [t.type for t in tokens if t.nesting == 1] == ['bullet_list_open', 'list_item_open', 'paragraph_open'], text
    assert plain('x' * 300) == 'x' * 199 + '…'


@pytest.mark.parametrize('path', ['/home/ann/x', '~/x', 'C:\\Users\\ann\\x', 'local:/home/ann/x/', 'file:///home/ann/x'])
def test_folders_of_a_machine_are_not_told(path: str) -> None:
    assert without_path(path) == '…/x'
    assert without_path('maker/model') == 'maker/model'


def test_every_model_is_named_once_by_its_place_in_the_recipe(tmp_path: Path) -> None:
    recipe = {
        'generator': {'type': 'Parallel', 'members': [{'model': HUB}, {'model': HUB, 'words': {'name': 'w', 'sha256': '0' * 64}}], 'names': {'name': 'a class'}}
    }
    assert [m.role for m in models(make(tmp_path / 'store', recipe=recipe))] == [
        'generator.members.0.model',
        'generator.members.1.model',
        'generator.members.1.words',
    ]


def test_a_card_replaces_a_card_and_nothing_else(store: Store, tmp_path: Path, synthaug: Say) -> None:
    out = tmp_path / 'README.md'
    for _ in range(2):
        done = synthaug('card', store.folder, '--licence', 'mit', '--out', out)
        assert (done.status, done.out) == (0, f'{out}\n')
    assert synthaug('card', store.folder, '--licence', 'mit').out == out.read_text() + '\n'
    out.write_text('# Mine\n')
    with pytest.raises(StoreError, match='no data card'):
        write_card(data_card(store), out)
    assert out.read_text() == '# Mine\n'
    with pytest.raises(StoreError, match='lies inside the store'):
        write_card(data_card(store), Path(store.folder) / 'README.md')


def measured(folder: Path, store: Store) -> Path:
    """What `synthaug evaluate` writes, as far as a card reads it."""
    values = {'fid': {'mean': 12.5, 'se': None}, 'precision': {'mean': 0.75, 'se': 0.01}, 'lof': {'mean': float('nan'), 'se': None}}
    row = {'by': None, 'value': None, 'features': 'pixels', 'k': 5, 'lof_k': 20, 'n': 8, 'n_real': 30, 'values': values}
    rows = [{'set': 'real', **row}, {'set': 'pets', **row}, {'set': 'pets', **row, 'by': 'sigma', 'value': 1}, {'set': 'pets: seed > 1', **row, 'n': 3}]
    sets = [{'name': 'real'}, *({'name': name, 'store': 'pets', **identity(store)._asdict()} for name in ('pets', 'pets: seed > 1'))]
    found = {'format_version': 1, 'real': {'folder': '/home/ann/train', 'images': 30}, 'sets': sets, 'rows': rows, 'notes': ['Few | images.']}
    folder.mkdir()
    (folder / 'metrics.json').write_text(json.dumps(found))
    return folder


def test_figures_of_this_store_are_in_the_card(store: Store, tmp_path: Path, synthaug: Say) -> None:
    done = synthaug('card', store.folder, '--figures', measured(tmp_path / 'runs', store))
    rows = cells(done.out)
    assert rows.count(['fid', '12.5']) == 2  # the whole store and a selection of it, no part of a split
    assert ['precision', '0.75 ± 0.01'] in rows
    assert ['lof', '–'] in rows
    assert '| fid | 12.5 |' in done.out
    assert 'Features of pixels, k = 5; 8 of these images against 30 real ones in …/train. Shares are in percent.' in done.out
    assert 'Few \\| images.' in done.out
    assert 'was not measured here' not in done.out
    assert 'not searched here for copies' in done.out


def test_an_audit_of_this_store_is_in_the_card(store: Store, tmp_path: Path) -> None:
    compared = {'copies': 2, 'others': 30, 'expected_by_chance': 0.05}
    about = {'name': 'whatever its folder was called', **identity(store)._asdict(), 'images': 8, 'selection': 'all'}
    found = {'format_version': 1, 'store': about, 'features': {'text': 'pixels'}, 'contaminated': True, 'notes': []}
    (tmp_path / 'audit.json').write_text(json.dumps({**found, 'comparisons': {'test': compared, 'store': {**compared, 'copies': 0}}}))
    card = data_card(store, figures=read_figures(tmp_path, store))
    rows = cells(card)
    assert 'Copies of held-out images were found' in card
    assert 'not searched here for copies' not in card
    assert ['copies of held-out images', '2 (30 were compared, 0.05 expected by chance)'] in rows
    assert ['copies of other images of the store', '0 (30 were compared, 0.05 expected by chance)'] in rows
    assert ['contaminated with held-out images', 'yes'] in rows


def test_figures_of_another_store_or_another_file_are_refused(store: Store, tmp_path: Path) -> None:
    mine, runs = identity(store), measured(tmp_path / 'runs', store)
    other = make(tmp_path / 'pets', classes=('one', 'two', 'four'))  # of the same name
    both = rf"'pets' \({mine}\), none of '.*pets' as it is now \({identity(other)}\)"
    with pytest.raises(DataError, match=both) as refused:
        read_figures(runs, other)
    assert 'Measure this store' in refused.value.cure
    # The same plan, other images: made anew on another device, say.
    anew = Store.open(shutil.copytree(store.folder, tmp_path / 'anew' / 'pets'))
    anew.publish(anew.unfinished()[0], make_rows(anew.unfinished()[0]), False)
    with pytest.raises(DataError, match='The plan is the same, the images are others'):
        read_figures(runs, anew)
    assert identity(anew).fingerprint == mine.fingerprint and identity(anew).content_sha256 != mine.content_sha256
    found = json.loads((runs / 'metrics.json').read_text())
    (runs / 'metrics.json').write_text(json.dumps({**found, 'sets': [{'name': 'pets', 'store': 'pets'}]}))
    with pytest.raises(DataError, match=r'does not say by its fingerprint .*: an older version wrote it'):
        read_figures(runs, store)
    for text in ('{}', '[]', 'x', '{"format_version": 1}', '{"format_version": 1, "real": 3, "notes": []}', '{"format_version": 1, "sets": [{"name": 1}]}'):
        (tmp_path / 'metrics.json').write_text(text)
        with pytest.raises(DataError):
            read_figures(tmp_path / 'metrics.json', store)
    with pytest.raises(DataError, match='holds no figures'):
        read_figures(tmp_path / 'nowhere', store)


def test_the_card_of_a_store_without_anything_is_a_card(tmp_path: Path) -> None:
    """No cost, no prompt, no model, no block: each is said, none is invented."""
    plan = Plan(CLASSES, make_blocks(CLASSES, 2, {}, 4), {})
    card = data_card(Store.create(tmp_path / 'store', plan, {}))
    for said in ('0 images of 0 classes', 'No model is named.', 'The plan names none.', 'No image was rejected.', 'Not noted.', '## Prompts\n\nNone.'):
        assert said in card
