"""What a learning run writes: sheets of samples, the loss per noise level, its log."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from synthaug_plugins.diffusion import IDDPMUniform, LogNormal, LogUniform, VPUniform
from synthaug_plugins.learning.calibrate import SigmaLoss
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.sheet import BLUE, GREY, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = 'log.jsonl'


def draw_sheet(path: Path, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write a PNG with one named row of images each; small images are enlarged by whole factors, with hard pixel edges.

    Args:
        path: the file; an old one is replaced.
        rows: (name, images (n, H, W, 3) uint8), all of one H and W; one row and one image at least.
    """
    font, gap = ImageFont.load_default(13), 4
    (height, width), most = rows[0][1].shape[1:3], max(len(images) for _, images in rows)
    scale = max(1, 64 // max(height, width))
    down, right, head = height * scale + gap, width * scale + gap, 12 + int(max(font.getlength(name) for name, _ in rows))
    sheet = Image.new('RGB', (head + most * right + gap, len(rows) * down + gap), 'white')
    draw = ImageDraw.Draw(sheet)
    for r, (name, images) in enumerate(rows):
        draw.text((6, gap + r * down + (down - gap) // 2), name, INK, font, anchor='lm')
        for k, pixels in enumerate(images):
            picture = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(picture, (head + k * right, gap + r * down))
    write_png(path, np.asarray(sheet))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 3) uint8 as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG', optimize=True)
    write_whole(path, buffer.getvalue())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Entries of log.jsonl that an earlier call wrote into the folder of a run, the oldest first."""
    path = folder / _LOG
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.is_file() else []


def write_log(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write log.jsonl anew, whole or not at all: a line of JSON for each entry."""
    write_whole(folder / _LOG, ''.join(json.dumps(entry, ensure_ascii=False) + '\n' for entry in entries).encode())


def write_losses(folder: Path, table: Sequence[SigmaLoss], distribution: LogNormal | VPUniform | LogUniform | IDDPMUniform, title: str) -> None:
    """Write loss_per_sigma.csv and .png: the loss at each noise level, before the density of the noise levels trained at."""
    rows = [[f'{row.sigma:.6g}', f'{row.loss:.6g}', f'{row.standard_error:.3g}'] for row in table]
    write_csv(folder / 'loss_per_sigma.csv', [['sigma', 'loss', 'standard_error'], *rows])
    write_whole(folder / 'loss_per_sigma.png', _plot(table, distribution, title))


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows as comma-separated values, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    write_whole(path, text.getvalue().encode())


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of matplotlib, in inches, at 120 pixels each; on a canvas of its own, so the backend that a notebook chose stays."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, **options)
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def _plot(table: Sequence[SigmaLoss], distribution: LogNormal | VPUniform | LogUniform | IDDPMUniform, title: str) -> bytes:
    sigma, loss, error = (np.array([getattr(row, name) for row in table]) for name in ('sigma', 'loss', 'standard_error'))
    figure = new_figure(7.5, 4.2, layout='constrained')
    axes = figure.subplots()
    behind = axes.twinx()
    edges = np.linspace(math.log(sigma[0]), math.log(sigma[-1]), 60)
    share = np.histogram(_ln_draws(distribution), edges)[0].astype(float)
    middle = np.exp((edges[:-1] + edges[1:]) / 2)
    behind.fill_between(middle, share, color=BLUE, alpha=0.15, linewidth=0)
    behind.set_ylim(0, 1.15 * max(share.max(), 1))
    behind.set_yticks([])
    behind.set_ylabel('shaded: density of the noise levels trained at', color=GREY, fontsize=8)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle='--')
    axes.text(sigma[-1], 1, 'untrained network ', color=GREY, fontsize=8, va='bottom', ha='right')
    axes.plot(sigma, loss, color=INK, marker='o', markersize=3)
    axes.fill_between(sigma, loss - np.nan_to_num(error), loss + np.nan_to_num(error), color=INK, alpha=0.2, linewidth=0)
    axes.set_xscale('log')
    axes.set_xlim(sigma[0], sigma[-1])
    axes.set_ylim(0, max(1.15, 1.05 * float(np.nanmax(loss))))
    axes.set_xlabel('noise level sigma (pixels in -1 to 1)')
    axes.set_ylabel('weighted loss, mean over pixels')
    axes.set_title(title, fontsize=10, loc='left')
    axes.spines[['top']].set_visible(False)
    behind.spines[['top']].set_visible(False)
    return png_of(figure)


def _ln_draws(distribution: LogNormal | VPUniform | LogUniform | IDDPMUniform) -> np.ndarray:
    """ln sigma of 200,000 draws, without touching torch's global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return distribution.draw(200_000, 'cpu').double().log().numpy()
