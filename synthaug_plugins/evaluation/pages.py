"""HTML files that need nothing else: no script, font or image from elsewhere; light and dark as the reader's system is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from synthaug_plugins.evaluation import charts
from synthaug_plugins.evaluation.statistics import options_text, plus_minus, signed
from synthaug_plugins.store.files import write_whole


def write_page(path: str | Path, template: str, **content: Any) -> None:
    """Write a page of one of the templates beside this file. All text is escaped.

    Args:
        path: the file; replaced atomically.
        template: its name.
        content: what the template names; `title` and `versions` (name -> version) stand on every page.

    Raises:
        StoreError: disk full, no permission.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(charts=charts, signed=signed, plus_minus=plus_minus, options_text=options_text)
    write_whole(Path(path), environment.get_template(template).render(**content).encode())
