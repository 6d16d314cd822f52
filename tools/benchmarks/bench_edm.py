"""The sampler's cost over a plain loop, and how exact its choices are for their price. CPU or GPU, a few minutes.

python tools/benchmarks/bench_edm.py [--device auto] [--max-steps 512]

Overhead: `diffusion.sample` against a Heun loop written out by hand over the same network, in turns.

Exactness: for a closed-form Gaussian mixture, whose denoiser is known exactly, and for the embedded digits model. Each sampler
starts from the same latents; its error is the root mean square distance of an image from the exact end of its own trajectory
(Heun, EDM's steps, 512 of them, from the same sigma_max), the median over images: a few that end in another blob say little. The
number of network evaluations (NFE) that a baseline needs for the error of EDM's choice, over EDM's own, is the NFE ratio. The
paper's ratios (7.3, 300 and 3.2) are at equal FID, of networks trained for each baseline: another question.
For the mixture, also the Frechet distance between 1,024 samples' pixels and the mixture's exact mean and covariance.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import machine
from torch import Tensor

from synthaug_plugins.device import choose_device
from synthaug_plugins.diffusion import Denoiser, GaussianMixture, SampleNoise, build_denoiser, edm_sigmas, full_float32, nfe, sample, sampler_options
from synthaug_plugins.evaluation.frechet import frechet_distance, moments
from synthaug_plugins.weights import load_weights, model_folder, read_config

EDM = {'preset': 'edm'}
BASELINES = {'vp, euler': {'preset': 'vp'}, 've, euler': {'preset': 've'}, 'iddpm, euler': {'preset': 'iddpm'}}
OTHERS = {'edm steps, euler': {'solver': 'euler'}, 'edm steps, dpmpp_2m': {'solver': 'dpmpp_2m'}, 'edm steps, unipc': {'solver': 'unipc'}}
PAPER = {'vp, euler': 7.3, 've, euler': 300, 'iddpm, euler': 3.2}


def digits(device: torch.device) -> Callable[..., Tensor]:
    """The embedded model on a device."""
    folder = model_folder('embedded:digits_edm')
    denoiser = build_denoiser(read_config(folder))
    denoiser.load_state_dict(load_weights(folder))
    return denoiser.eval().requires_grad_(False).to(device)


def mixture() -> GaussianMixture:
    """Five blobs in 64 dimensions, about as wide and as far apart as digits are."""
    rng = np.random.default_rng(0)
    return GaussianMixture(
        torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3]), torch.from_numpy(0.5 * rng.normal(size=(5, 1, 8, 8))), torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4])
    )


@torch.no_grad()
def plain_loop(denoiser: Callable[..., Tensor], latents: Tensor, cond: Tensor, num_steps: int) -> Tensor:
    """Heun's method over EDM's steps and nothing else."""
    sigmas = edm_sigmas(num_steps).tolist()
    x = latents.double() * sigmas[0]
    for now, after in itertools.pairwise(sigmas):
        slope = (x - denoiser(x, torch.tensor(now), cond)) / now
        proposal = x + (after - now) * slope
        if after > 0:
            proposal = x + (after - now) * (slope + (proposal - denoiser(proposal, torch.tensor(after), cond)) / after) / 2
        x = proposal
    return x


def overhead(device: torch.device, batch: int, repeats: int) -> None:
    """Print the ratio of wall times, sampler over plain loop."""
    denoiser, latents = digits(device), SampleNoise(range(batch), (1, 8, 8), device).latents()
    cond = torch.arange(batch, device=device) % 10

    # CPU seconds where the CPU does the work: on a shared machine wall time says who else was running.
    now = time.perf_counter if device.type == 'cuda' else time.process_time

    def clock(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
        begin = now()
        images = function().cpu()
        return now() - begin, images

    runs = (lambda: plain_loop(denoiser, latents, cond, 18), lambda: sample(denoiser, latents, cond=cond))
    with full_float32():
        clock(runs[0]), clock(runs[1])
        ratios, plain_times = [], []
        for k in range(repeats):
            order = (0, 1) if k % 2 else (1, 0)
            taken = {which: clock(runs[which]) for which in order}
            ratios.append(taken[1][0] / taken[0][0])
            plain_times.append(taken[0][0])
    apart = float((taken[0][1] - taken[1][1]).abs().max())
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f'overhead, {batch} digits, 18 steps, {repeats} pairs in turns: plain loop {1e3 * statistics.median(plain_times):.0f} ms; ', end='')
    print(f'sample / plain loop = {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}); largest difference of a pixel {apart:.1e}')


def curve(
    denoiser: Callable[..., Tensor], latents: Tensor, cond: Tensor | None, preset: dict, steps: list[int], exact: dict[float, Tensor]
) -> list[tuple[int, float, Tensor]]:
    """(NFE, error, images) for each number of steps. exact: images by sigma_max, filled here."""
    points = []
    for num_steps in steps:
        options = sampler_options({**preset, 'num_steps': num_steps}, denoiser.sigma_min, denoiser.sigma_max)
        images = sample(denoiser, latents, cond=cond, **options)
        start = options['sigma_max']
        if start not in exact:
            exact[start] = sample(denoiser, latents, cond=cond, num_steps=512, sigma_min=1e-4, sigma_max=start)
        apart = (images - exact[start]).flatten(1).square().mean(1).sqrt()
        points.append((nfe(options), float(apart.median()), images))
    return points


def needed(points: list[tuple[int, float, Tensor]], error: float) -> float:
    """The NFE at which the error falls to `error`, between two points by their logarithms; infinite when it never does."""
    for (n0, e0, _), (n1, e1, _) in itertools.pairwise(points):
        if e0 > error >= e1:
            return math.exp(math.log(n0) + math.log(n1 / n0) * math.log(e0 / error) / math.log(e0 / e1))
    return math.inf


def exactness(title: str, denoiser: Denoiser, latents: Tensor, cond: Tensor | None, max_steps: int, truth: tuple | None) -> None:
    """Print errors by NFE and the NFE ratios."""
    print(f'\n{title}, {len(latents)} images')
    exact: dict[float, Tensor] = {}
    doubling = [2**k for k in range(3, 20) if 2**k <= max_steps]
    edm = curve(denoiser, latents, cond, EDM, [9, 18, 36, 72], exact)
    _print_points('edm, heun', edm, truth)
    for name, preset in {**BASELINES, **OTHERS}.items():
        points = curve(denoiser, latents, cond, preset, doubling if name in BASELINES else [9, 18, 35, 70, 140], exact)
        _print_points(name, points, truth)
        ratios = []
        for price, error, _ in edm:
            n = needed(points, error)
            more = f'over {points[-1][0] / price:.0f}' if points[-1][1] > error else f'under {points[0][0] / price:.1f}'
            ratios.append(f'{n / price:.1f}' if math.isfinite(n) else more)
        paper = f'; the paper, at equal FID: {PAPER[name]}' if name in PAPER else ''
        print(f'  {name:20} NFE ratio at the error of edm, heun with NFE 17, 35, 71, 143: {", ".join(ratios)}{paper}')


def _print_points(name: str, points: list[tuple[int, float, Tensor]], truth: tuple | None) -> None:
    for n, error, images in points:
        print(f'  {name:20} NFE {n:5}  error {error:.2e}{_far(images, truth)}')


def _far(images: Tensor, truth: tuple | None) -> str:
    return '' if truth is None else f'  Frechet {frechet_distance(*moments(images.flatten(1).cpu().numpy()), *truth):.4f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--batch', type=int, default=32, help='digits per batch of the overhead')
    parser.add_argument('--repeats', type=int, default=41, help='pairs of the overhead')
    parser.add_argument('--max-steps', type=int, default=512, help='largest number of Euler steps')
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    print(machine(device))
    overhead(device, arguments.batch, arguments.repeats)

    blobs = mixture()
    latents = SampleNoise(range(1024), (1, 8, 8)).latents().double()
    truth = tuple(m.numpy() for m in blobs.moments())
    drawn = blobs.draw(1024, torch.Generator().manual_seed(0))
    floor = frechet_distance(*moments(drawn.flatten(1).numpy()), *truth)
    print(f'\n1024 exact draws of the mixture lie at Frechet {floor:.4f} from its moments: the least that can be seen')
    exactness('closed-form mixture of 5 normals in 64 dimensions', blobs, latents, None, arguments.max_steps, truth)

    with full_float32():
        latents = SampleNoise(range(32), (1, 8, 8), device).latents()
        cond = torch.arange(32, device=device) % 10
        exactness('embedded:digits_edm', digits(device), latents, cond, arguments.max_steps, None)


if __name__ == '__main__':
    main()
