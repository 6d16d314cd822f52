"""What the cards of all embedded digit models say alike, and how their folders are finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import SEEN

import synthaug_plugins
from synthaug_plugins.weights import CARD

ASSETS = Path(synthaug_plugins.__file__).parent / 'assets'
LICENCE = 'Apache-2.0'
DATA = {
    'name': 'Optical Recognition of Handwritten Digits, as shipped with scikit-learn (load_digits)',
    'origin': 'E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, CC BY 4.0; scikit-learn is BSD-3-Clause',
    'split': f'images 0 to {SEEN - 1} by position (the file is ordered by writer); {SEEN} to 1796 were never seen',
}
LABELS_SEEN = f"""It knows {SEEN} labels. A classifier that is given fewer gets help that it could not have made from its own data: here the
  model stands in for one trained on the web."""
_LIMIT = 5_000_000  # bytes of one folder


def finish(folder: Path, card: Mapping[str, Any], text: str, most_bytes: int = _LIMIT) -> None:
    """Write card.json and card.md, make every file readable for all, and refuse a folder that is too large (by default: for the package)."""
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    (folder / 'card.md').write_text(text, encoding='utf-8')
    files = [path for path in folder.rglob('*') if path.is_file()]
    for path in files:
        path.chmod(0o644)  # safetensors makes its files readable by their owner only
    size = sum(path.stat().st_size for path in files)
    if size > most_bytes:
        raise SystemExit(f'{folder} has {size:,} bytes; {most_bytes:,} are allowed.')
