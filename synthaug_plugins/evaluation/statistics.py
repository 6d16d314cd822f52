"""What a few runs say, and no more: means, spreads, paired differences. No significance is claimed from three seeds.

All accuracies, recalls and differences are in percent or percentage points.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def spread(points: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1 in the denominator; None for one point), n and the points themselves."""
    return {
        'mean': statistics.fmean(points),
        'sd': statistics.stdev(points) if len(points) > 1 else None,
        'n': len(points),
        'points': list(points),
    }


def paired(points: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Difference to the baseline seed by seed: draws differ by seed, and their spread is common to both arms.

    Returns: mean, standard error sd / sqrt(n) (None for one pair), n, points.
    """
    result = spread([a - b for a, b in zip(points, baseline, strict=True)])
    sd = result.pop('sd')
    return {**result, 'se': None if sd is None else sd / result['n'] ** 0.5}


def class_gains(recalls: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Per class, the paired difference of recall.

    Args:
        recalls, baseline: per seed, the recall of each class.
    """
    return [paired(mine, base) for mine, base in zip(zip(*recalls, strict=True), zip(*baseline, strict=True), strict=True)]


VISIBLE = 0.05
"""A difference of fewer points is printed as ±0.0, and counts as neither gain nor harm."""


def gain_and_harm(gains: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a mean over classes hides: how much some gained and others lost.

    Args:
        gains: per class, as `class_gains` returns them.

    Returns: gain (0 or more) and harm (0 or less) in points of the mean recall over all classes, so that gain + harm is the difference of the
        mean recalls; helped and harmed, the numbers of classes.
    """
    means = [g['mean'] for g in gains]
    return {
        'gain': sum(m for m in means if m > 0) / len(means),
        'harm': sum(m for m in means if m < 0) / len(means),
        'helped': sum(m > VISIBLE for m in means),
        'harmed': sum(m < -VISIBLE for m in means),
    }


def signed(value: float) -> str:
    """A difference with its sign: `+1.3`, `−0.4`; a value that rounds to zero is `±0.0`.

    >>> signed(1.26), signed(-0.44), signed(0.04)
    ('+1.3', '−0.4', '±0.0')
    """
    if round(value, 1) == 0:
        return '±0.0'
    return f'{value:+.1f}'.replace('-', '−')


def plus_minus(result: Mapping[str, Any], key: str = 'sd') -> str:
    """`91.2 ± 0.8`, or `91.2` for one run."""
    return f'{result["mean"]:.1f}' if result[key] is None else f'{result["mean"]:.1f} ± {result[key]:.1f}'


def options_text(options: Mapping[str, Any]) -> str:
    """Searched options in few words: the last part of each dotted key where that says enough.

    >>> options_text({'mix.alpha': 0.3, 'cfg_options.optim_wrapper.optimizer.lr': 0.1})
    'alpha = 0.3, lr = 0.1'
    """
    last = [key.rpartition('.')[2] for key in options]
    names = last if len(set(last)) == len(last) else list(options)
    return ', '.join(f'{name} = {value!r}' for name, value in zip(names, options.values(), strict=True))


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What a comparison found, in plain sentences: each arm against the baseline, where it helped and where it harmed.

    Args:
        results: as `compare` returns them.
    """
    base, *others = results['arms']
    text = [f'{base["name"]}: {plus_minus(base["test"])} % on test ({base["test"]["n"]} seeds).']
    for arm in others:
        d = arm['difference']
        each = ', '.join(signed(p) for p in d['points'])
        agree = 'above' if all(p > 0 for p in d['points']) else 'below' if all(p < 0 for p in d['points']) else 'both above and below'
        seeds = f'{agree} the baseline over {d["n"]} seeds ({each})' if d['n'] > 1 else 'one seed only'
        line = f'{arm["name"]}: {plus_minus(arm["test"])} %, {signed(d["mean"])} points against {base["name"]}, {seeds}.'
        gains = [(g['mean'], name) for g, name in zip(arm['class_gains'], results['classes'], strict=True)]
        helped, harmed = [g for g in gains if g[0] > VISIBLE], [g for g in gains if g[0] < -VISIBLE]
        if helped:
            line += f' Helped {len(helped)} of {len(gains)} classes, most {max(helped)[1]} ({signed(max(helped)[0])}).'
        if harmed:
            line += f' Harmed {len(harmed)}, most {min(harmed)[1]} ({signed(min(harmed)[0])}).'
        text.append(line)
    return text
