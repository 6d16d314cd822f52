"""Real images of noise, and folders of embeddings for them that nobody learned, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from synthaug_plugins.models.embedding_shards import create_embeddings, publish_shard
from synthaug_plugins.models.text_model import open_model
from synthaug_plugins.real_images import RealImages


def all_ids(real: RealImages) -> list[str]:
    return [i for name in real.classes for i in real.ids(name)]


def folder_of_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> RealImages:
    """So many images of noise per class, of that height and width."""
    rng = np.random.default_rng(0)
    for name, n in counts.items():
        (root / name).mkdir(parents=True)
        for k in range(n):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f'{k}.png')
    return RealImages(root)


def made_up(folder: Path, model: str, real: RealImages, tokens: int | None = None, seed: int = 0, fit: str = 'squash', **options: Any) -> str:
    """Unit normal embeddings of all images, for a model as `open_model` takes it."""
    opened = open_model(model, **options)
    shape = opened.embedding_shape(tokens)
    card = {'model': opened.origin(contents=True), 'shape': shape, 'image_size': opened.image_size, 'options': {'fit': fit}}
    create_embeddings(folder, card)
    ids, g = all_ids(real), torch.Generator().manual_seed(seed)
    pooled = None if shape.pooled is None else torch.randn(len(ids), shape.pooled, generator=g)
    publish_shard(folder, 0, ids, list(real.file_hashes(ids)), torch.randn(len(ids), shape.tokens, shape.width, generator=g), pooled)
    return str(folder)
