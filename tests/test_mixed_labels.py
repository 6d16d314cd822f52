"""Labels of embeddings that mix images of two classes: from the generator through a store into the targets of a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from learned_embeddings import made_up
from test_mix import CLASSES, PER_CLASS, loader, run, world  # noqa: F401
from test_mix import recipe as training

from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import complete
from synthaug_plugins.real_images import RealImages

SD = 'embedded:digits_sd'


def test_mixed_labels_of_a_generated_store_are_the_targets_of_a_training(tmp_path: Path, world: Path) -> None:  # noqa: F811
    images = RealImages(world / 'train')
    options = {'type': 'DiffusionInversion', 'model': SD, 'embeddings': made_up(tmp_path / 'embeddings', SD, images), 'sampler': {'num_steps': 1}}
    options |= {'partners': 'all', 'alphas': [0, 0.3], 'guidance_scales': 1}
    keys = {'data': str(images.root), 'per_source': 1, 'block_size': 20, 'batch_size': 44}
    store = generate(complete({'generator': options, **keys}), tmp_path / 'store', 'cpu', quiet=True)
    rows = store.index().to_pylist()
    assert len(rows) == len(CLASSES) * PER_CLASS
    wanted = set()
    for row in rows:
        params, target = json.loads(row['params']), np.zeros(len(CLASSES))
        target[row['label']] += 1 - params['alpha']
        target[CLASSES.index(params.get('partner', row['source']).split('/')[0])] += params['alpha']
        assert np.allclose(row['mixed_label'], target, atol=1e-7)
        wanted.add(tuple(np.round(target, 5)))
    assert {max(target) for target in wanted} == {0.7, 1.0}
    mix = {'store': str(store.folder), 'soft_labels': {'column': 'mixed_label'}}
    seen = [tuple(np.round(s.gt_score.tolist(), 5)) for batch in loader(training(world, mix={**mix, 'alpha': 1.0})) for s in batch['data_samples']]
    assert set(seen) <= wanted and {0.7, 1.0} == {max(target) for target in seen}
    run(training(world, mix={**mix, 'mode': 'per_batch'}), tmp_path / 'run')
