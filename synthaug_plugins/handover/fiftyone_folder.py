"""A folder that FiftyOne imports as `fiftyone.types.FiftyOneImageClassificationDataset`.

```
data/<id>.png|jpg|webp
labels.json            {"classes": [...], "labels": {"<id>": {"label": 3, "attributes": {...}}}}
```
`label` is a position in `classes`. FiftyOne makes each attribute a field of the label: `ground_truth.prompt`, `ground_truth.clip_p`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import StoreError
from synthaug_plugins.handover.images import DESCRIBING, images, score_names
from synthaug_plugins.store.rows import params_of
from synthaug_plugins.store.selection import Selection
from synthaug_plugins.store.store import Store
from synthaug_plugins.store.table import is_list

LABELS, DATA = 'labels.json', 'data'
TAKEN = frozenset({'id', 'tags', 'label', 'confidence', 'attributes', *DESCRIBING})
"""Names of a label's own fields in FiftyOne, and of what we write beside the scores."""


def write_fiftyone(folder: Path, store: Store, selection: Selection) -> None:
    """Write the images and, row by row, what is known of each. Scores without a value are left out.

    Raises:
        StoreError: a score column has a name that FiftyOne gives to something else.
    """
    scores = score_names(selection.table)
    for name in scores:
        no_list = name == 'logits' and not is_list(selection.table.schema.field(name).type)  # a list of them is what the field is for
        if name.lower() in TAKEN or name.startswith('_') or no_list:
            what = f'The score column {name!r} cannot be an attribute of a FiftyOne label, which has a field of that name or keeps such names to itself.'
            raise StoreError(what, 'Score again under another name (--prefix), remove the file of that column from scores/, and export.')
    (folder / DATA).mkdir()
    with open(folder / LABELS, 'w', encoding='utf-8') as file:
        file.write(f'{{"classes": {json.dumps(list(store.classes))},\n"labels": {{')
        for number, image in enumerate(images(store, selection)):
            row = image.row
            (folder / DATA / f'{row["id"]}.{image.suffix}').write_bytes(image.data)
            label = {'label': row['label'], 'attributes': _attributes(row, scores)}
            file.write(f'{"," if number else ""}\n{json.dumps(row["id"])}: {json.dumps(label, default=str, allow_nan=False)}')
        file.write('\n}}\n')


def _attributes(row: dict[str, Any], scores: list[str]) -> dict[str, Any]:
    """What is known of an image besides its label, as plain JSON."""
    found = {name: row[name] for name in DESCRIBING if row.get(name) is not None}
    if 'params' in found:
        found['params'] = params_of(found['params'], row['id'])
    return found | {name: row[name] for name in scores if row[name] is not None and _finite(row[name])}


def _finite(value: Any) -> bool:
    """Whether JSON can say it: no NaN and no infinity, alone or in a list."""
    return all(not isinstance(v, float) or math.isfinite(v) for v in (value if isinstance(value, list) else [value]))
