"""The report: one HTML file that needs nothing else, to look at alone or to send to somebody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy
from markupsafe import Markup

from synthaug_plugins.errors import DataError, StoreError
from synthaug_plugins.evaluation import charts
from synthaug_plugins.evaluation.gallery import counts, gallery, is_pixel_art
from synthaug_plugins.evaluation.pages import write_page
from synthaug_plugins.evaluation.panels import Panel
from synthaug_plugins.evaluation.statistics import paired, sentences
from synthaug_plugins.store.store import Store


@dataclass(frozen=True)
class Overview:
    """What spans several comparisons.

    Attributes:
        table: rows, the head first.
        about_table: what it shows.
        panels: curves.
        about_panels: what they show.
        further: more tables, each with a sentence that says what it shows; rows, the head first.
    """

    table: Sequence[Sequence[str]] = ()
    about_table: str = ''
    panels: Sequence[Panel] = ()
    about_panels: str = ''
    further: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()


def write_report(
    results: Sequence[Mapping[str, Any]],
    out_html: str | Path,
    plugin_manager: pluggy.PluginManager | None = None,
    title: str | None = None,
    stores: Sequence[str | Path] | None = None,
    commands: Sequence[str] = (),
    overview: Overview | None = None,
) -> None:
    """Write the report on one or several comparisons.

    The file makes no network request: no script, font or image from elsewhere, and a content security policy that forbids
    them, to fragments of plugins too. All text is escaped; fragments of `synthaug_report_section` are inserted as they are.

    Args:
        results: as `compare` returns them, or read from `results.json`.
        out_html: the file; replaced atomically.
        plugin_manager: asked for further sections, once per comparison.
        title: heading; default: that of the first comparison.
        stores: stores to show; default: those that the arms trained on. The gallery shows one per arm, that of
            the first seed.
        commands: shell commands that made the data and stores, before those of the comparisons.
        overview: what spans all comparisons, before the single ones; none by default.

    Raises:
        DataError: no results, or results of another format version.
        StoreError: a store that an arm trained on is gone or damaged.
    """
    if not results:
        raise DataError('There are no results to report.', 'Run a comparison first.')
    for result in results:
        if result.get('format_version') != 1:
            raise DataError(f'The results have format_version {result.get("format_version")!r}; this version reads 1.', 'Run the comparison again.')
    uses = _uses(results)
    opened = [_open(folder) for folder in (list(map(str, stores)) if stores is not None else list(uses))]
    write_page(
        out_html,
        'report.html.j2',
        title=title or results[0]['title'],
        notes=list(dict.fromkeys(note for result in results for note in result['notes'])),
        comparisons=[drawn(r) for r in results],
        galleries=[{**gallery(store), 'store': str(store.folder), 'pixelated': is_pixel_art(store)} for store in _shown(results, opened)],
        funnels=[counts(store, uses.get(str(store.folder), [])) for store in opened],
        costs=[_generation_cost(store) for store in opened],
        commands=[*commands, *dict.fromkeys(r['command'] for r in results)],
        overview=overview or Overview(),
        sections=plugin_sections(results, plugin_manager),
        versions=results[0]['versions'],
    )


def _uses(results: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, Any]]]:
    """Per store folder, which arms of which comparison select what from it."""
    uses: dict[str, list[tuple[str, Any]]] = {}
    for result in results:
        for arm in result['arms']:
            for per_seed in arm['stores']:
                for entry in per_seed:
                    use = (f'{result["title"]}: {arm["name"]}' if len(results) > 1 else arm['name'], entry['select'])
                    if use not in uses.setdefault(entry['store'], []):
                        uses[entry['store']].append(use)
    return uses


def _shown(results: Sequence[Mapping[str, Any]], opened: Sequence[Store]) -> list[Store]:
    """The stores of the first seed of every arm; where none of them is at hand, the first store."""
    first = {entry['store'] for result in results for arm in result['arms'] for entry in arm['stores'][0]}
    return [store for store in opened if str(store.folder) in first] or list(opened[:1])


def _open(folder: str) -> Store:
    try:
        return Store.open(folder)
    except StoreError as error:
        raise StoreError(f'The report shows the store {folder!r}, which cannot be opened: {error.what}', error.cure) from error


def drawn(result: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison with what the template draws: scales, reference lines, differences of the search."""
    base = result['arms'][0]
    searches = []
    for search in result['search']:
        rows = [{**c, 'difference': paired(c['val']['points'], base['val']['points'])} for c in search['candidates']]
        span = charts.value_range([p for row in rows for p in row['val']['points']] + base['val']['points'])
        searches.append({**search, 'rows': rows, 'span': span, 'keys': list(search['candidates'][0]['options'])})
    return {
        **result,
        'sentences': sentences(result),
        'span': charts.value_range([p for arm in result['arms'] for p in arm['test']['points']]),
        'base': base,
        'searches': searches,
        'tested': sum(result['support']),
    }


def _generation_cost(store: Store) -> dict[str, Any]:
    """Model, device and measured cost of a store, as far as it says."""
    made_by = store.made_by
    cost = made_by.get('cost') or {}
    images, seconds = cost.get('images'), cost.get('seconds')
    return {
        'store': str(store.folder),
        'model': (made_by.get('model') or {}).get('name', 'unknown'),
        'device': made_by.get('device', 'unknown'),
        'images': images,
        'seconds': seconds,
        'rate': images / seconds if images and seconds else None,
    }


def plugin_sections(results: Sequence[Mapping[str, Any]], plugin_manager: pluggy.PluginManager | None) -> list[Markup]:
    """What plugins add to the page of some results; it stands there as it is."""
    if plugin_manager is None:
        return []
    return [Markup(section) for result in results for section in plugin_manager.hook.synthaug_report_section(run=dict(result)) if section]
