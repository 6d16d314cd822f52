"""What a store cost: images per second, GPU-hours, and what share of the GPU's speed the networks used (MFU), each only where it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synthaug_plugins.store.cost import RunCost, read_runs
from synthaug_plugins.store.store import Store

_AMPERE, _ADA, _HOPPER = {'fp32': 19.5, 'bf16': 312.0}, {'fp32': 82.6, 'bf16': 165.2}, {'fp32': 67.0, 'bf16': 989.5}
PEAKS: Mapping[str, Mapping[str, float]] = {
    **dict.fromkeys(('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-SXM4-80GB', 'NVIDIA A100-PCIE-40GB', 'NVIDIA A100 80GB PCIe'), _AMPERE),
    **dict.fromkeys(('NVIDIA H100 80GB HBM3', 'NVIDIA H200'), _HOPPER),
    'NVIDIA H100 PCIe': {'fp32': 51.0, 'bf16': 756.0},
    'NVIDIA L4': {'fp32': 30.3, 'bf16': 121.0},
    'NVIDIA L40S': {'fp32': 91.6, 'bf16': 362.0},
    'NVIDIA GeForce RTX 4090': _ADA,
}
"""Dense peak in TFLOP/s by the name that torch has for a GPU, from NVIDIA's data sheets: half of what they say with sparsity. float16 is as fast as bfloat16;
float32 is that of the ordinary cores, since TF32 is off (`diffusion.precision.full_float32`)."""
PEAKS_FROM = "NVIDIA's data sheets, dense"


def cost_of(store: Store) -> dict[str, Any]:
    """What a store cost, for the page.

    Returns: `facts`: pairs of a name and a text; `runs`: a table, its head first, where there were several; `notes`: sentences.
    """
    runs = read_runs(store.place)
    if not runs:
        why = 'No completed run is noted in cost.json: it was stopped before its end, or a version wrote the store that noted nothing.'
        return {'facts': [('images/s', 'not known')], 'runs': [], 'notes': [why]}
    walls, images, evaluations = [run.wall for run in runs], sum(run.images for run in runs), sum(run.network_images for run in runs)
    notes: list[str] = []
    facts = [('images made, rejected ones included', str(images))]
    if known := _all(walls):
        wall, places = sum(known), [(run.wall or 0) * (run.devices or 1) for run in runs]
        on_gpu = all(_is_gpu(run) for run in runs)
        facts += [('wall time', time_text(wall)), ('images/s', _rate(images, wall)), ('GPU-hours', f'{sum(places) / 3600:.3g}' if on_gpu else 'none')]
        if not on_gpu:
            facts.append(('process-hours', f'{sum(places) / 3600:.3g}'))
            notes.append('GPU-hours: none, since not every run names a GPU. Process-hours: wall time times processes or GPUs.')
    else:
        worked = sum(run.seconds for run in runs)
        facts += [('time of all workers', time_text(worked)), ('images/s of a worker', _rate(images, worked)), ('GPU-hours', 'not known')]
        notes.append('GPU-hours: not known, since an older version made the store, which noted neither wall time nor devices.')
    facts.append(('device', '; '.join(dict.fromkeys(_device(store, run) for run in runs))))
    facts.append(('network evaluations per image', f'{evaluations / images:.4g}' if evaluations and images else 'not counted'))
    if work := _all([run.network_tflop for run in runs]):
        facts.append(('TFLOP per network evaluation', f'{sum(work) / evaluations:.3g}' if evaluations else 'none'))
    share, why = _mfu(store, runs)
    facts.append(('MFU', why if share is None else f'{100 * share:.3g} %'))
    notes.append(f'MFU: not known, since {why}.' if share is None else why)
    if share is None:
        facts[-1] = ('MFU', 'not known')
    return {'facts': facts, 'runs': [_HEAD, *map(_line, runs)] if len(runs) > 1 else [], 'notes': notes}


_HEAD = ('run', 'images', 'wall', 'device', 'workers', 'batch size')


def _line(run: RunCost) -> tuple[str, ...]:
    device = 'not known' if run.device is None else f'{run.devices or "?"} of {run.device}'
    return 'completed', str(run.images), 'not known' if run.wall is None else time_text(run.wall), device, str(run.workers or 'not known'), str(run.batch_size)


def _all(values: Sequence[float | None]) -> list[float] | None:
    """The values, if none is missing."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _is_gpu(run: RunCost) -> bool:
    return run.device is not None and not run.device.endswith('CPU')


def _device(store: Store, run: RunCost) -> str:
    if run.device is None:
        return str(store.made_by.get('device') or 'not known')
    each = f', {run.workers} processes' if run.workers and run.workers != run.devices else ''
    return f'{run.devices} of {run.device}{each}' if run.devices and run.devices > 1 else f'{run.device}{each}'


def _rate(images: int, seconds: float) -> str:
    return f'{images / seconds:.3g}' if seconds else 'not known'


def time_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    return f'{seconds:.3g} s' if seconds < 120 else f'{seconds / 60:.3g} min' if seconds < 7200 else f'{seconds / 3600:.4g} h'


def _mfu(store: Store, runs: Sequence[RunCost]) -> tuple[float | None, str]:
    """The share of the GPUs' dense peak that forward passes of the denoisers took over the whole wall time, and what it is; None and why not."""
    work, walls = _all([run.network_tflop for run in runs]), _all([run.wall for run in runs])
    if not work or not walls or not all(work):
        return None, 'operations of the network were not counted (they are on GPUs alone, without torch.compile and without gradients of guidance)'
    precisions = set(_values(store.plan.recipe.get('generator'), 'precision'))
    if len(precisions) != 1:
        return None, 'the plan does not say one precision'
    (precision,) = precisions
    kind = {'fp32': 'fp32', 'bf16': 'bf16', 'fp16': 'bf16', 'auto': 'bf16'}.get(str(precision))  # all of these GPUs have bfloat16, which 'auto' takes
    room = 0.0
    for run, wall in zip(runs, walls, strict=True):
        peak = PEAKS.get(run.device or '', {}).get(kind or '')
        if peak is None or not run.devices:
            return None, f'the peak of {run.device or "the device"} in {precision} is not in our table ({PEAKS_FROM})'
        room += wall * run.devices * peak
    if not room:
        return None, 'no time was noted'
    said = f'MFU: {sum(work):.4g} TFLOP of forward passes of the denoiser, over wall time, devices and their peak in {precision} ({PEAKS_FROM}). '
    return sum(work) / room, said + 'Loading, decoding, inspecting and writing are in the time and not in the work.'


def _values(value: Any, key: str) -> Iterator[Any]:
    """All values of a key in nested JSON."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from [inner] if name == key else _values(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner, key)
