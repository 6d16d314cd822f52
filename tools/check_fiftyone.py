#!/usr/bin/env python
"""Read an export with the real FiftyOne and compare every sample with the store.

    synthaug export stores/digits --to fiftyone --out digits_fiftyone
    python tools/check_fiftyone.py stores/digits digits_fiftyone

Not part of the suite: `pip install fiftyone` fetches a database server, which FiftyOne starts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from synthaug_plugins.store.selection import select
from synthaug_plugins.store.store import Store

OWN = ('id', 'tags', 'label', 'confidence')  # fields of a label that an export says nothing of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store')
    parser.add_argument('export', help='made of all kept images of the store')
    options = parser.parse_args()
    import fiftyone

    store = Store.open(options.store)
    rows = {row['id']: row for row in select(store, allow_empty=True).table.to_pylist()}
    dataset = fiftyone.Dataset.from_dir(options.export, dataset_type=fiftyone.types.FiftyOneImageClassificationDataset)
    assert dataset.default_classes == list(store.classes)
    found = {Path(sample.filepath).stem: sample for sample in dataset}
    assert found.keys() == rows.keys()
    fields = set()
    for image_id, sample in found.items():
        row, label = rows[image_id], sample.ground_truth
        assert label.label == store.classes[row['label']]
        assert hashlib.sha256(Path(sample.filepath).read_bytes()).hexdigest() == row['sha256']
        for name in set(label.field_names) - {*OWN}:
            told = json.loads(row[name]) if name == 'params' else row.get(name)
            assert label[name] == told if not isinstance(told, list) else list(label[name]) == told, f'{image_id}: {name}'
            fields.add(name)
    print(f'FiftyOne {fiftyone.__version__} reads {len(found)} images of {len(store.classes)} classes as the store has them, with {", ".join(sorted(fields))}')


if __name__ == '__main__':
    main()
