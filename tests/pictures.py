"""What stands in a picture that matplotlib draws, and whether it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def drawn_texts() -> Iterator[list[tuple[str, Any]]]:
    """Every text that is drawn meanwhile, with the box that it takes, in pixels. Skips without matplotlib."""
    text = pytest.importorskip('matplotlib.text')
    drawn: list[tuple[str, Any]] = []
    original = text.Text.draw

    def watch(self: Any, renderer: Any, *args: Any, **options: Any) -> None:
        if self.get_text().strip() and self.get_visible():
            drawn.append((self.get_text(), self.get_window_extent(renderer)))
        original(self, renderer, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text.Text, 'draw', watch)
        yield drawn


def check_readable(drawn: list[tuple[str, Any]], width: int, height: int) -> None:
    """No text leaves the picture, and none lies on another."""
    for i, (name, box) in enumerate(drawn):
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, name
        for other, its_box in drawn[i + 1 :]:
            apart = box.x1 <= its_box.x0 or its_box.x1 <= box.x0 or box.y1 <= its_box.y0 or its_box.y1 <= box.y0
            assert apart, (name, other)
