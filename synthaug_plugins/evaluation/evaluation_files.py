"""What `synthaug evaluate` leaves in a folder: numbers as CSV and JSON, curves, and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from synthaug_plugins.errors import MissingExtra
from synthaug_plugins.evaluation.classifiers import CLASSIFIERS
from synthaug_plugins.evaluation.csv_text import csv_bytes
from synthaug_plugins.evaluation.evaluate import SHOWN, Evaluation
from synthaug_plugins.evaluation.fingerprint import versions
from synthaug_plugins.evaluation.gallery import data_uri
from synthaug_plugins.evaluation.metrics.measure import METRICS
from synthaug_plugins.evaluation.metrics.sets import ImageSet
from synthaug_plugins.evaluation.metrics.table import Row, csv_rows, metrics_of, panels, spoken, table, trends
from synthaug_plugins.evaluation.pages import write_page
from synthaug_plugins.evaluation.picture import draw_panels
from synthaug_plugins.own_folder import alone, refuse_among_images, refuse_foreign
from synthaug_plugins.store.files import write_whole

CSV, JSON, REPORT, PICTURE = 'metrics.csv', 'metrics.json', 'report.html', 'curves.png'
OWN_FILES = frozenset({'.lock', CSV, JSON, REPORT, PICTURE, CLASSIFIERS})
"""What a folder of results may hold."""

_CURVES = (
    'Bars: one standard error over the images; recall, coverage and distances of whole sets have none. Dashed: sets that the column does not vary in, and '
    'the real images; where a metric depends on the number of images, only sets alike in it.'
)


def check_out(out: str | Path, *real: str | Path) -> None:
    """Refuse a folder for results before anything is measured.

    Args:
        real: folders of real images.

    Raises:
        RecipeError: it holds something else, or lies among the real images, where it would become a class.
    """
    refuse_among_images(out, *real)
    refuse_foreign(Path(out), OWN_FILES, 'folder of measurements')


def write_evaluation(found: Evaluation, out: str | Path, command: str, progress: Callable[[str], None] = print) -> None:
    """Write metrics.csv, metrics.json, report.html and, where something varies and matplotlib is installed, curves.png. Old ones are replaced.

    Args:
        out: a folder, new, empty or of an earlier evaluation.
        command: shell command that makes it again.
        progress: is told if there is no picture.

    Raises:
        RecipeError: see `check_out`; another evaluation writes into the folder.
        DataError, StoreError: an image to show is gone; disk full, no permission.
    """
    folder = Path(out)
    check_out(folder, found.real)
    used = {**versions(), **{name: metadata.version(name) for name in ('torchmetrics', 'scikit-learn')}}
    curves = [(text, panels(found.rows, text)) for text in found.by]
    with alone(folder, 'evaluation'):
        write_whole(folder / CSV, csv_bytes(csv_rows([*found.rows, *found.by_class])))
        write_whole(folder / JSON, (json.dumps(_plain(found, command, used), indent=1) + '\n').encode())
        write_page(
            folder / REPORT,
            'evaluation.html.j2',
            title=_title(found),
            about=found.about,
            notes=found.notes,
            table=table(found.rows),
            by_class=table(found.by_class) if found.by_class else None,
            about_table='± is one standard error over the images. Each real image of the first line is measured against all others, itself left out.',
            curves=[{'axis': spoken(text), 'panels': drawn, 'trends': trends(found.rows, text)} for text, drawn in curves],
            about_curves=_CURVES,
            sheets=list(_sheets(found)),
            pixelated=max(found.sets[0].pixels(found.sets[0].ids[0]).shape[:2]) <= 64,
            selections=found.selections,
            metrics=[METRICS[name] for name in metrics_of([*found.rows, *found.by_class])],
            command=command,
            versions=used,
        )
        (folder / PICTURE).unlink(missing_ok=True)
        if curves:
            try:
                draw_panels(folder / PICTURE, [panel for _, drawn in curves for panel in drawn], _title(found), None, f'{found.about} {_CURVES}')
            except MissingExtra as error:
                progress(f'{PICTURE} is not drawn, the report has the same curves. {error.what} {error.cure}')


def _title(found: Evaluation) -> str:
    stores = dict.fromkeys(one.store for one in found.sets if one.store is not None)
    return f'{", ".join(stores)} beside {Path(found.real).expanduser().resolve().name}'


def _plain(found: Evaluation, command: str, used: Mapping[str, str]) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        'format_version': 1,
        'features': {'text': found.rows[0].measures.features, 'identity': dict(found.network)},
        'real': {'folder': found.real, 'images': found.rows[0].measures.n},
        'sets': [
            {'name': one.name, 'images': len(one.ids), 'selection': one.chosen, **({'store': one.store, **one.identity._asdict()} if one.identity else {})}
            for one in found.sets
        ],
        'rows': [{'set': row.name, 'by': row.by, 'value': row.value, 'class': row.of_class, **row.measures.plain()} for row in (*found.rows, *found.by_class)],
        **found.also,
        'trends': found.trends,
        'notes': list(found.notes),
        'command': command,
        'versions': dict(used),
    }


def _sheets(found: Evaluation) -> list[dict[str, Any]]:
    """Some images of every line: real ones, the rarest of these, and those of each store or of its parts."""
    sheets = []

    def add(name: str, one: ImageSet, ids: Sequence[str], n: int) -> None:
        sheets.append({'name': name, 'n': n, 'images': [data_uri(Image.fromarray(one.pixels(i))) for i in ids]})

    real = found.sets[0]
    add('real', real, _spaced(real.ids), len(real.ids))
    add('real, the rarest', real, found.rarest, len(found.rarest))
    for one in found.sets[1:]:
        if not one.splits:
            add(one.name, one, _spaced(one.ids), len(one.ids))
        for split in one.splits:
            for value, at in split.groups.items():
                label = Row(one.name, found.rows[0].measures, split.by, value).label
                add(label, one, _spaced([one.ids[i] for i in at]), len(at))
    return sheets


def _spaced(ids: Sequence[str]) -> list[str]:
    """A few of them, evenly spaced."""
    n = min(SHOWN, len(ids))
    return [ids[i * len(ids) // n] for i in range(n)]
