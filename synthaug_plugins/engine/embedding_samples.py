"""How near learned embeddings bring a model to their images: a sheet to look at, and the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synthaug_plugins.diffusion import SampleNoise, full_float32, sample
from synthaug_plugins.diffusion.precision import network_dtype
from synthaug_plugins.diffusion.steps import option_levels
from synthaug_plugins.engine.learn_embeddings_recipe import EmbeddingsRun
from synthaug_plugins.engine.learn_output import draw_sheet
from synthaug_plugins.errors import ModelError
from synthaug_plugins.generators.denoiser_generator import to_uint8
from synthaug_plugins.learning.batches import mix_seed
from synthaug_plugins.learning.latents import posteriors
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.embeddings import Embeddings
from synthaug_plugins.models.fit import channels_first, place
from synthaug_plugins.prompts.templates import fill
from synthaug_plugins.store.files import write_whole

SHEET = 'sheet.png'
_FIGURES = 'samples.json'
_CELL, _COLUMNS = 128, 10  # pixels of an image on the sheet, at most, and images side by side


def sample_embeddings(run: EmbeddingsRun, found: Embeddings, folder: Path, device: torch.device) -> dict[str, Any]:
    """Draw the first images of a run from their embeddings, and from the prompt (or label) of their class with the same noise; write the sheet.

    Both are sampled without classifier-free guidance. What an earlier call drew of the same embeddings is not drawn again.

    Args:
        run: its model is loaded if it is not yet.
        found: the embeddings of at least these images.
        folder: receives sheet.png and samples.json.
        device: where to run.

    Returns: the figures: `images`, their number; and for each way to an image ('round_trip' through the VAE, None in pixels; 'embedding'; 'class') the
        root mean square difference to the real image on the scale 0 to 255, (mean over images, its standard error); `closer`: how many embeddings' images
        are nearer to theirs than the class's.

    Raises:
        ModelError: a sample is not finite.
    """
    samples = run.recipe['samples']
    ids = run.ids[: samples['images']]
    said = {'ids': ids, 'embeddings': found.identity(ids), **samples, 'names': run.names, 'seed': run.recipe['seed']}
    said = json.loads(json.dumps(said))
    path = folder / _FIGURES
    if path.is_file() and (folder / SHEET).is_file():
        known = json.loads(path.read_text(encoding='utf-8'))
        if known['of'] == said:
            return dict(known['figures'])
    model = run.model
    if not model.is_loaded:
        model.load(device, network_dtype(run.options.precision, device))
    real, shown = _real(run, ids), dict[str, np.ndarray]()
    if not isinstance(model, DenoiserModel):
        shown['round_trip'] = _round_trip(run, ids, device)
    rows = found.find(ids)
    tokens, pooled = (None if part is None else part.to(device) for part in found.read(rows))
    assert tokens is not None
    seeds = [mix_seed(run.recipe['seed'], sha256, 'sample') for sha256 in found.sha256_of(rows)]
    shown['embedding'] = _drawn(run, seeds, device, lambda part: model.embedded(tokens[part], None if pooled is None else pooled[part]))
    told = [run.names[i.split('/')[0]] for i in ids]
    shown['class'] = _drawn(run, seeds, device, lambda part: _class_conditions(run, told[part]))
    names = {'round_trip': 'through the VAE', 'embedding': 'embedding', 'class': 'class'}
    sheet = [(name, images[at : at + _COLUMNS]) for at in range(0, len(ids), _COLUMNS) for name, images in _named(real, shown, names)]
    draw_sheet(folder / SHEET, [(name, np.stack([_small(image) for image in images])) for name, images in sheet])
    errors = {way: _rmse(images, real) for way, images in shown.items()}
    figures: dict[str, Any] = {'images': len(ids), 'closer': int((errors['embedding'] < errors['class']).sum())}
    figures |= {way: _mean(errors[way]) if way in errors else None for way in names}
    write_whole(path, (json.dumps({'of': said, 'figures': figures}, indent=1) + '\n').encode())
    return figures


def _named(real: np.ndarray, shown: Mapping[str, np.ndarray], names: Mapping[str, str]) -> list[tuple[str, np.ndarray]]:
    return [('real', real), *((names[way], images) for way, images in shown.items())]


def _real(run: EmbeddingsRun, ids: Sequence[str]) -> np.ndarray:
    """The real images as the model sees them, (n, H, W, 3) uint8."""
    placed = (channels_first(place(run.real_images.load(i), *run.model.image_size, run.options.fit).pixels, _channels(run)) for i in ids)
    return np.stack([np.repeat(image, 3 // len(image), axis=0).transpose(1, 2, 0) for image in placed])


def _channels(run: EmbeddingsRun) -> int:
    """Of an image in pixels."""
    return run.model.size[0] if isinstance(run.model, DenoiserModel) else 3


def _round_trip(run: EmbeddingsRun, ids: Sequence[str], device: torch.device) -> np.ndarray:
    """The real images through the VAE and back: as near as any sample can come. One at a time, as they were learned."""
    with full_float32(), torch.no_grad():
        means = (posteriors(run.model, [run.real_images.load(i)], run.options.fit, device)[0] for i in ids)
        return np.concatenate([to_uint8(run.model.decode(mean)) for mean in means])


def _class_conditions(run: EmbeddingsRun, names: Sequence[str]) -> Any:
    """What the model is told of a class: a prompt; a label; or no label, where it knows none of that name."""
    model = run.model
    if not isinstance(model, DenoiserModel):
        return model.conditions([fill(run.recipe['samples']['prompt'], name) for name in names])
    known = _labels(model)
    return model.embedded(torch.stack([model.embedding_of(name if name in known else '')[0] for name in names]))


def _labels(model: DenoiserModel) -> list[str]:
    """The classes that a model of our own can be told."""
    return model.classes if model.takes_labels else []


def class_said(run: EmbeddingsRun) -> str:
    """What the model is told of a class, for a reader."""
    if not isinstance(run.model, DenoiserModel):
        return f'from `{run.recipe["samples"]["prompt"]}` with the name of their class in it'
    unknown = [name for name in run.names.values() if name not in _labels(run.model)]
    return 'from the label of their class' if not unknown else 'without a label' if len(unknown) == len(run.names) else 'from the label of their class, if any'


def _drawn(run: EmbeddingsRun, seeds: Sequence[int], device: torch.device, told: Callable[[slice], Any]) -> np.ndarray:
    """Images (n, H, W, 3) uint8 of what the model is told of a part of them, from the noise of their seeds."""
    model, steps = run.model, run.recipe['samples']['num_steps']
    options = model.sampler_options({'num_steps': steps} if steps is not None else {})
    dtype = torch.float32 if device.type == 'mps' else torch.float64
    made: list[Tensor] = []
    with full_float32(), torch.no_grad():
        level = float(option_levels(options, model.round_sigma)[options['first_step']])
        for at in range(0, len(seeds), run.options.batch_size):
            part = slice(at, at + run.options.batch_size)
            noise = SampleNoise(seeds[part], model.size, device)
            latents = model.start_scale(level) * noise.latents().to(dtype)
            made.append(model.decode(sample(model.denoiser, latents, noise=noise.step, cond=told(part), dtype=dtype, **options).float()))
    pixels = torch.cat(made)
    if not bool(pixels.isfinite().all()):
        cure = "Give a new folder with a lower learning_rate, or with precision='fp32'."
        raise ModelError(f'After learning, a sample of {model.name!r} is not finite.', cure)
    return to_uint8(pixels)


def _rmse(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Root mean square difference of each image, (n,), on the scale 0 to 255."""
    return np.sqrt(np.square(images.astype(np.float64) - real).mean(axis=(1, 2, 3)))


def _mean(values: np.ndarray) -> list[float]:
    """Mean and its standard error; 0 for one value."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [round(float(values.mean()), 2), round(float(error), 2)]


def _small(image: np.ndarray) -> np.ndarray:
    """An image as the sheet shows it: not larger than its cell."""
    height, width = image.shape[:2]
    scale = min(1.0, _CELL / max(height, width))
    return np.asarray(Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)) if scale < 1 else image
