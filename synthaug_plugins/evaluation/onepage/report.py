"""`synthaug report`: one page on a store and what was done with it. Reads only: no model loads, nothing is fetched but a remote store's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy
import pyarrow as pa
import pyarrow.compute as pc

from synthaug_plugins import __version__
from synthaug_plugins.errors import StoreError
from synthaug_plugins.evaluation.gallery import gallery, is_pixel_art
from synthaug_plugins.evaluation.onepage.cost import cost_of
from synthaug_plugins.evaluation.onepage.results import audit, evaluation, read_comparisons, read_kind
from synthaug_plugins.evaluation.onepage.worst import worst
from synthaug_plugins.evaluation.pages import write_page
from synthaug_plugins.evaluation.report import plugin_sections
from synthaug_plugins.handover.images import refuse_inside
from synthaug_plugins.handover.origin import models
from synthaug_plugins.store.identity import identity
from synthaug_plugins.store.reasons import group_reasons
from synthaug_plugins.store.selection import Selection, select
from synthaug_plugins.store.shard import KEPT
from synthaug_plugins.store.store import Store

PAGE = 'report.html'
MARK = '<!-- synthaug report of a store -->'
"""Stands in every page of ours: only such a file is replaced."""
_CLASSES, _RECIPE = 60, 20000  # rows; letters


@dataclass(frozen=True)
class Given:
    """What a report is made of.

    Attributes:
        store: folder or address.
        evaluations, audits, comparisons: folders of results, or their files.
        where: condition on the accepted images, see `select`: the last step of the funnel, and the images that are shown.
        worst: expressions that rank images, see `worst.worst`.
        command: shell command that makes the page again.
    """

    store: str | Path
    evaluations: Sequence[str | Path] = ()
    audits: Sequence[str | Path] = ()
    comparisons: Sequence[str | Path] = ()
    where: str | None = None
    worst: Sequence[str] = ()
    command: str = ''


def report(given: Given, out: str | Path, plugin_manager: pluggy.PluginManager | None = None) -> Path:
    """Write the page: images, funnel, metrics, copies, worst images, gain and harm, cost, commands.

    Args:
        out: a file that ends in .html, or a folder for report.html. Of files that are there, only such a page is replaced.
        plugin_manager: asked for further sections, once per comparison.

    Returns: the file.

    Raises:
        StoreError: no store, a damaged one; another file is there, or it would lie in a store.
        DataError: results of another kind, of another store, or of this one before its images changed.
        RecipeError: a wrong condition, an unknown column.
    """
    path = _path(out)
    store = Store.open(given.store)
    comparisons = [one for folder in given.comparisons for one in read_comparisons(folder, store)]
    found = {
        'evaluations': [evaluation(one) for folder in given.evaluations for one in read_kind(folder, store, 'evaluation')],
        'audits': [audit(one, store) for folder in given.audits for one in read_kind(folder, store, 'audit')],
        'comparisons': comparisons,
    }
    selection = select(store, given.where, allow_empty=True, columns=['id'])
    funnel, cost, pixelated = _funnel(store, selection), cost_of(store), is_pixel_art(store)
    write_page(
        path,
        'onepage.html.j2',
        title=f'Report of {store.place.label}',
        mark=MARK,
        about=_about(store, selection),
        facts=_facts(funnel, cost, found),
        made=_made(store),
        gallery={**gallery(store, 4, where=given.where, rejected=3), 'store': str(store.folder), 'pixelated': pixelated},
        pixelated=pixelated,
        funnel=funnel,
        later=_later(store),
        worst=worst(store, given.where, given.worst),
        cost=cost,
        commands=_commands(store, found, given.command),
        recipe=_recipe(store),
        sections=plugin_sections(comparisons, plugin_manager),
        versions={'synthaug-plugins': __version__},
        **found,
    )
    return path


def _path(out: str | Path) -> Path:
    """The file to write, or StoreError."""
    path = Path(out).expanduser()
    path = path if path.suffix.lower() in ('.html', '.htm') and not path.is_dir() else path / PAGE
    refuse_inside(path)
    if path.is_symlink() or (path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes())):
        raise StoreError(f'{str(path)!r} exists and is no report of a store.', 'Give another name with --out; nothing was touched.')
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _about(store: Store, selection: Selection) -> str:
    generator = store.plan.recipe.get('generator')
    kind = f' by the generator {generator.get("type", "unnamed")}' if isinstance(generator, Mapping) else ''
    waiting = len(store.unfinished())
    missing = f' The store is unfinished: {waiting} of {len(store.plan.blocks)} blocks are missing.' if waiting else ''
    chosen = '' if selection.where is None else f' Of the accepted images those are shown for which {selection.where}.'
    return f'Synthetic images of {len(store.classes)} classes, made{kind}. It is the store with {identity(store)}.{chosen}{missing}'


def _made(store: Store) -> list[tuple[str, str]]:
    """What made it: models, device, date, versions."""
    made_by = store.made_by
    rows = [
        (m.role, f'{m.name}' + (f', revision {m.revision}' if m.revision else '') + (f', SHA-256 {m.sha256[:12]}' if m.sha256 else '')) for m in models(store)
    ]
    rows += [
        (name, str(made_by[key])) for name, key in (('created', 'created'), ('device', 'device'), ('synthaug-plugins', 'synthaug_plugins')) if made_by.get(key)
    ]
    versions = made_by.get('versions')
    return rows + ([('versions', ', '.join(f'{k} {v}' for k, v in versions.items()))] if isinstance(versions, Mapping) else [])


def _funnel(store: Store, selection: Selection) -> dict[str, Any]:
    """Asked for, made, rejected by reason, accepted and selected: as a whole, and per class where classes differ."""
    counts = store.counts()
    reasons: dict[str, int] = {}
    for c in counts.values():
        for reason, n in c['reasons'].items():
            reasons[reason] = reasons.get(reason, 0) + n
    total = {key: sum(c[key] for c in counts.values()) for key in ('target', 'kept', 'rejected')}
    made, selected = total['kept'] + total['rejected'], len(selection.table)
    steps = [('asked for', total['target'], ''), ('made', made, 'every try counts')]
    steps += [(f'rejected: {reason}', -n, '') for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]
    steps += [('accepted', total['kept'], ''), ('selected', selected, selection.text)]
    rows = [(name, c['target'], c['kept'] + c['rejected'], c['rejected'], c['kept'], selection.counts[name], c['reasons']) for name, c in counts.items()]
    alike = len({row[1:6] for row in rows}) == 1
    rows.sort(key=lambda row: (row[5] / row[2] if row[2] else 0, row[0]))
    inspectors = store.plan.recipe.get('inspectors')
    named = [str(one.get('type')) for one in inspectors if isinstance(one, Mapping)] if isinstance(inspectors, list | tuple) else []
    most = max(1, total['target'], made)
    return {
        **{'asked': total['target'], 'made': made, 'kept': total['kept'], 'rejected': total['rejected'], 'selected': selected},
        'steps': [(name, n, 100 * abs(n) / most, note) for name, n, note in steps],
        'inspectors': named,
        'alike': alike,
        'rows': [] if alike else rows[:_CLASSES],
        'classes': len(rows),
        'selection': selection.text,
    }


def _later(store: Store) -> list[dict[str, Any]]:
    """What inspectors and audits decided later, on accepted images: columns NAME_kept, and NAME_reason beside it."""
    names = store.score_column_names()
    wanted = [name.removesuffix('_kept') for name in sorted(names) if name.endswith('_kept') and f'{name.removesuffix("_kept")}_reason' in names]
    table = store.index([column for name in wanted for column in (f'{name}_kept', f'{name}_reason')], KEPT) if wanted else None
    rows = []
    for name in wanted:
        assert table is not None
        kept, reason = table[f'{name}_kept'], table[f'{name}_reason']
        if not (pa.types.is_boolean(kept.type) and pa.types.is_string(reason.type)):
            continue
        counted = pc.value_counts(reason.drop_null())
        reasons = group_reasons(dict(zip(counted.field('values').to_pylist(), counted.field('counts').to_pylist(), strict=True)))
        yes = pc.sum(kept).as_py() or 0
        rows.append({'name': name, 'looked': len(kept) - kept.null_count, 'kept': yes, 'rejected': len(kept) - kept.null_count - yes, 'reasons': reasons})
    return rows


def _facts(funnel: Mapping[str, Any], cost: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The page in a few numbers."""
    facts = [(f'{funnel["selected"]:,}', 'images, of ' + (f'{funnel["made"]:,} made')), (f'{funnel["rejected"]:,}', 'rejected')]
    known = dict(cost['facts'])
    facts += [(known[name], name) for name in ('images/s', 'images/s of a worker', 'GPU-hours', 'MFU') if name in known]
    if found['audits']:
        bad = any(one['contaminated'] for one in found['audits'])
        facts.append(('yes' if bad else 'no', 'contaminated with held-out images'))
    return facts


def _commands(store: Store, found: Mapping[str, Any], own: str) -> list[tuple[str, str | None]]:
    """What was done, and the command line; None where nobody wrote it down."""
    made = store.made_by.get('command')
    commands: list[tuple[str, str | None]] = [('make the images', made if isinstance(made, str) else None)]
    for name in store.score_files():
        if name != 'scores/audit.parquet':
            commands.append((f'add the score columns of {name}', None))
    for what, kind in (('measure', 'evaluations'), ('look for copies', 'audits'), ('compare', 'comparisons')):
        commands += [(what, command) for command in dict.fromkeys(one['command'] for one in found[kind])]
    return [*commands, ('make this page', own or None)]


def _recipe(store: Store) -> str:
    text = json.dumps(store.made_by.get('recipe') or store.plan.recipe, indent=1, ensure_ascii=False)
    return text if len(text) <= _RECIPE else text[:_RECIPE] + '\n...'
