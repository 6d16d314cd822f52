"""Learn an embedding for every image of a data set: from a recipe to a folder that generators read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthaug_plugins import __version__
from synthaug_plugins.device import choose_device
from synthaug_plugins.engine.embedding_samples import SHEET, class_said, sample_embeddings
from synthaug_plugins.engine.learn_embeddings_chunks import CHECKPOINTS, FOLDER, Chunks, how_far, learn_chunks
from synthaug_plugins.engine.learn_embeddings_recipe import EmbeddingsRun, decisive, prepare_embeddings
from synthaug_plugins.engine.learn_folder import LearnFolder
from synthaug_plugins.engine.learn_output import read_log, write_log
from synthaug_plugins.engine.progress import EmbeddingProgress
from synthaug_plugins.executors.base import Executor
from synthaug_plugins.executors.local import Local
from synthaug_plugins.learning.checkpoint import STATE
from synthaug_plugins.learning.embeddings import learn_embeddings
from synthaug_plugins.learning.embeddings_options import decisive_options
from synthaug_plugins.models.embedding_shards import EMBEDDINGS, create_embeddings, publish_shard, published_shards, read_index
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.own_folder import refuse_among_images
from synthaug_plugins.store.files import write_whole

CARD = 'card.md'
"""For a reader."""


def learn_image_embeddings(recipe: Mapping[str, Any], out: str | Path, device: str = 'auto', quiet: bool = False, executor: Executor | None = None) -> Path:
    """Learn the embeddings of a complete recipe's images into the folder `out`; continue a run that is there.

    Images that have an embedding keep it; of a run that is called again with more images, those are learned. The folder receives embeddings/ (for the
    option `embeddings` of generators), card.md, sheet.png (real images and what their embeddings make), log.jsonl with one line per shard, and
    checkpoints/ of the images at work.

    Args:
        recipe: as `engine.learn_embeddings_recipe.load_embeddings_recipe` returns it.
        out: new, empty, or the folder of an earlier call with a recipe that differs in which images, samples, names and memory only.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quiet: no progress on standard error.
        executor: whose workers learn the images, a chunk at a time, on its own devices: see `learn_embeddings_chunks.divide`. The folder depends neither on
            the executor nor on how many workers it has. None: all images go through the slots of one batch in this process, which keeps these full
            to the end also where images are finished early; other images share batches then, so the last bits and the division into shards differ.

    Returns: the folder of the embeddings.

    Raises:
        RecipeError, DataError, ModelError: see `prepare_embeddings` and `learn_embeddings`; or `out` lies within the images, is not ours, or holds a run
            of another recipe, whose differing keys are named.
        StoreError: the disk is full; the last checkpoint is sound.
        ExecutorError: workers were lost again and again; their checkpoints are sound.
        Stopped: Ctrl-C.
    """
    folder, where = Path(out).expanduser(), choose_device(device)
    run = prepare_embeddings(recipe)
    refuse_among_images(folder, run.real_images.root)
    ours = LearnFolder(folder, 'embeddings', run.recipe, decisive)
    with ours.at_work(lambda: _how_far(folder, len(run.ids))):
        if executor is None and Chunks(folder):
            executor = Local(device, 1)  # what was divided goes on so
        return _Learning(run, folder, where, executor).learn(quiet)


def save_stand_in(run: EmbeddingsRun, folder: Path) -> None:
    """Write embeddings of zeros in place of those that a run will learn: what uses them can be checked before there are any."""
    shape, n = run.model.embedding_shape(run.options.tokens), len(run.ids)
    about = {'model': run.model.origin(), 'shape': shape, 'image_size': list(run.model.image_size), 'options': decisive_options(run.options)}
    create_embeddings(folder, {**_about(run, folder), **about})
    tokens, pooled = torch.zeros(n, shape.tokens, shape.width).half(), torch.zeros(n, shape.pooled).half() if shape.pooled else None
    columns: dict[str, list[Any]] = {'steps': [0] * n, 'loss_first': [0.0] * n, 'loss_last': [0.0] * n, 'network': ['none'] * n}
    publish_shard(folder, 0, run.ids, list(run.real_images.file_hashes(run.ids)), tokens, pooled, columns)


def _about(run: EmbeddingsRun, folder: Path) -> dict[str, Any]:
    """What embeddings.json says beside what learning knows."""
    name = run.recipe['name'] or folder.parent.name
    what = 'an embedding for each of a set of images (Diffusion Inversion)'
    return {'name': name, 'what': what, 'licence': run.recipe['licence'], 'made_by': f'synthaug_plugins {__version__}'}


def _how_far(folder: Path, images: int) -> str:
    if Chunks(folder):
        return how_far(folder, images)
    state = folder / CHECKPOINTS / STATE
    known = json.loads(state.read_text(encoding='utf-8')) if state.is_file() else {'waiting': [], 'at_work': []}
    published = len(Embeddings(folder / FOLDER)) if (folder / FOLDER / EMBEDDINGS).is_file() else 0
    return f'holds {published + len(known["waiting"])} embeddings of {images} images and {len(known["at_work"])} half learned ones'


class _Learning:
    """One call of `learn_image_embeddings`, from the checked recipe on."""

    def __init__(self, run: EmbeddingsRun, folder: Path, device: torch.device, executor: Executor | None) -> None:
        self.run, self.folder, self.device, self.executor = run, folder, device, executor

    def learn(self, quiet: bool) -> Path:
        """Learn to the end and write the results."""
        run, out = self.run, self.folder / FOLDER
        with nullcontext() if quiet else EmbeddingProgress(len(run.ids), run.options.steps) as progress:
            on_step = progress.step if progress else None
            if self.executor is not None:
                found = learn_chunks(run, self.folder, _about(run, out), self.executor, on_step)
            else:
                arguments = (run.model, run.real_images, run.ids, run.options, out, self.folder / CHECKPOINTS, self.device)
                found = learn_embeddings(*arguments, names=run.names, card=_about(run, out), on_step=on_step)
        if {**found.card, **_about(run, out)} != found.card:
            create_embeddings(out, {**found.card, **_about(run, out)})  # name and licence are those of the last call
            found = Embeddings(out)
        self._log()
        figures = sample_embeddings(run, found, self.folder, self.device)
        write_whole(self.folder / CARD, self._describe(found, figures).encode())
        return out

    def _log(self) -> None:
        """One line per shard: images, and means over them. Lines that an earlier call wrote stay."""
        entries = read_log(self.folder)
        for number in published_shards(self.folder / FOLDER)[len(entries) :]:
            table = read_index(self.folder / FOLDER, number)
            means = {name: round(float(np.mean(table[name].to_numpy())), 5) for name in ('steps', 'loss_first', 'loss_last')}
            entries.append({'shard': number, 'images': len(table), **means})
        write_log(self.folder, entries)

    def _per_class(self) -> dict[str, np.ndarray]:
        """Class -> sums of (images, steps, first loss, last loss, images that were finished early), over all shards."""
        sums: dict[str, np.ndarray] = {}
        for number in published_shards(self.folder / FOLDER):
            table = read_index(self.folder / FOLDER, number)
            steps = table['steps'].to_numpy()
            values = np.stack([np.ones(len(table)), steps, table['loss_first'].to_numpy(), table['loss_last'].to_numpy(), steps < self.run.options.steps], 1)
            for image_id, row in zip(table['id'].to_pylist(), values, strict=True):
                name = image_id.split('/')[0]
                sums[name] = sums.get(name, 0) + row
        return dict(sorted(sums.items()))

    def _describe(self, found: Embeddings, figures: Mapping[str, Any]) -> str:
        """The card for a reader. Nothing in it depends on when or how often the run was stopped."""
        run, o, shape, card = self.run, self.run.options, found.shape, found.card
        (height, width), classes = found.image_size, self._per_class()
        pooled = f' and a pooled vector of {shape.pooled}' if shape.pooled else ''
        start = 'noise' if o.initialise_from is None else repr(o.initialise_from)
        early = int(sum(row[4] for row in classes.values()))
        plateau = f'; {early} images were finished earlier, when their loss fell no more' if o.plateau else ''
        draws = f' of {o.draws} draws' if o.draws > 1 else ''
        rows = [f'| {name} | {n:.0f} | {s / n:.0f} | {a / n:.4f} | {b / n:.4f} |' for name, (n, s, a, b, _) in classes.items()]
        return '\n'.join(
            [
                f'# {card["name"]}\n\nEmbeddings of {len(found):,} images of {len(classes)} classes, for `{run.model.name}` at {height} x {width} pixels '
                'and no other model.\n',
                f'- {shape.tokens} token{"s" if shape.tokens > 1 else ""} of {shape.width} values{pooled} per image, started from {start}.',
                f'- {o.steps} steps{draws} per image{plateau}. AdamW, learning rate {o.learning_rate:g}.',
                f'- Licence: {card["licence"] or "not stated"}. An embedding shows its image again: what holds for the images holds for it.\n',
                f'![real images and what is drawn of them]({SHEET})\n',
                *_said(figures, class_said(run)),
                '| class | images | steps | first loss | last loss |\n|---|---|---|---|---|',
                *rows,
                f"\nIn a recipe of `synthaug generate`:\n\n```python\ngenerator = dict(type='synthaug_plugins.DiffusionInversion', "
                f"model={run.model.name!r}, embeddings='{self.folder.name}/{FOLDER}')\n```\n",
            ]
        )


def _said(figures: Mapping[str, Any], told: str) -> list[str]:
    """The figures, and what they do and do not say. told: what the model is told of a class."""
    ways = {'round_trip': 'through the VAE and back, without any sampling', 'embedding': 'sampled from their embeddings', 'class': f'sampled {told}'}
    rows = [f'| {ways[way]} | {figures[way][0]:.2f} | {figures[way][1]:.2f} |' for way in ways if figures[way] is not None]
    return [
        f'How far {figures["images"]} of these images are from the real ones: root mean square difference of pixels from 0 to 255, mean over images and its '
        f'standard error. Both kinds of samples start from the same noise, one draw for each image, without classifier-free guidance. Of '
        f'{figures["images"]} images {figures["closer"]} are nearer from their embedding than the other way. It says how much of an image its embedding '
        'holds, not how good the images are to train on.\n',
        '| | difference | standard error |\n|---|---|---|',
        *rows,
        '',
    ]
