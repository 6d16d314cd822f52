"""The few-shot study: from a folder of images to a table and a curve of method x shots, over seeds."""

from __future__ import annotations

import json
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy
import torch

from synthaug_plugins import compat
from synthaug_plugins.curation.class_prompts import ClassPrompts
from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.curation.clip_source import model_and_tag
from synthaug_plugins.curation.feature_cache import DEFAULT_FOLDER, FeatureCache
from synthaug_plugins.device import choose_device
from synthaug_plugins.errors import RecipeError, Stopped
from synthaug_plugins.evaluation.fewshot.accuracy import recalls, top1
from synthaug_plugins.evaluation.fewshot.baselines import BASELINES, wise_ft, zero_shot
from synthaug_plugins.evaluation.fewshot.checks import check_numbers, records_of, refuse_foreign_sources
from synthaug_plugins.evaluation.fewshot.curve import draw_curve
from synthaug_plugins.evaluation.fewshot.table import Result, write_tables
from synthaug_plugins.evaluation.fewshot.task import Fitted, Labelled, Task, linear
from synthaug_plugins.evaluation.fewshot.tuning import REAL, RESULT, Setting, tuned_heads
from synthaug_plugins.evaluation.fingerprint import versions
from synthaug_plugins.evaluation.parts import Parts
from synthaug_plugins.mixing.records import read_records
from synthaug_plugins.own_folder import alone, refuse_foreign
from synthaug_plugins.real_images import RealImages
from synthaug_plugins.store.files import write_whole
from synthaug_plugins.store.reader import read_uri
from synthaug_plugins.store.store import Store

CURVE, SETTINGS = 'curve.png', 'study.json'
OWN_FILES = frozenset({'.lock', 'runs', 'results.csv', 'summary.csv', 'per_class.csv', CURVE, SETTINGS})
"""What a study's folder may hold."""

SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
PASSES, SYNTHETIC_BATCH = 30, 512
"""The paper's length: 30 passes over the synthetic images, 512 in a step."""
STEPS_WITHOUT_STORE = 480
"""As many steps as 30 passes over 8000 images (800 for each of 10 classes) take."""

NAMES = {
    'zero_shot': 'zero-shot CLIP',
    'tip_adapter': 'Tip-Adapter',
    'tip_adapter_f': 'Tip-Adapter-F',
    'linear_probe': 'linear probe',
    'cross_modal': 'cross-modal',
    'wise_ft': 'WiSE-FT of real',
    'wise_ft_mix': 'WiSE-FT of mix',
    'tuned_real': 'head, real',
    'tuned_mix': 'head, real + synthetic',
    'tuned_mix_sce': 'head, real + synthetic, SCE',
    'synthetic_then_real': 'head, synthetic then real',
    'real_then_synthetic': 'head, real then synthetic',
    'tuned_synthetic': 'head, synthetic',
    'tuned_synthetic_sce': 'head, synthetic, SCE',
}
"""How the curve calls the methods."""

_NOT_DRAWN = frozenset({'synthetic_then_real', 'real_then_synthetic', 'wise_ft_mix'})
"""In the table only: more lines than ten cannot be told apart."""


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        results: every run, see `table.Result`.
        classes: in label order.
        real: the method to compare those with synthetic images with, besides zero-shot.
    """

    results: list[Result]
    classes: tuple[str, ...]
    real: str


class _Features:
    """Features of the data folder's images by id, in the order of the classes."""

    def __init__(self, cache: FeatureCache, device: torch.device) -> None:
        self._cache, self._device = cache, device

    def of(self, images: RealImages, ids: Mapping[str, Sequence[str]]) -> Labelled:
        """Unit vectors of some images of a folder; labels are positions of their classes."""
        named = [(label, i) for label, name in enumerate(images.classes) for i in ids[name]]
        contents = ((str(images.root / i), (images.root / i).read_bytes()) for _, i in named)
        features = torch.from_numpy(self._cache.features(contents, self._device))
        return Labelled(features, torch.tensor([label for label, _ in named]))

    def make(self, store: str | Path, select: str | None) -> None:
        """Have those of a store's images in the cache."""
        records = read_records({'store': str(store), 'select': select})
        for first in range(0, len(records), FeatureCache.part_size):
            uris = map(records.uri, range(first, min(first + FeatureCache.part_size, len(records))))
            self._cache.features(((uri, read_uri(uri)) for uri in uris), self._device)


def study(
    data: str | Path,
    out: str | Path,
    model: str,
    plugin_manager: pluggy.PluginManager,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    store: str | Path | None = None,
    select: str | None = None,
    prompts: Mapping[str, Any] | None = None,
    steps: int | None = None,
    val_shots: int | None = None,
    lr_scales: Sequence[float] = (1.0,),
    cache: str = DEFAULT_FOLDER,
    device: str = 'auto',
    jobs: int = 1,
    setup: Callable[[], object] | None = None,
    progress: Callable[[str], None] = print,
) -> Study:
    """Compare ways to use a few real images (and a store of synthetic ones) with one CLIP; write table, curve and settings into `out`.

    Every draw of shots is given to all methods. Options and epochs are chosen on validation images; the test images are read once per run, after
    its training. Tuned heads take equal numbers of optimiser steps, with or without synthetic images. Runs that are done are not done again.

    Args:
        data: `train/<class>/<file>` and `test/<class>/<file>`, perhaps `val/`; without it min(shots, 4) images per class of train are kept back.
        out: folder of the study; new, or of an earlier call.
        model: the CLIP: 'RN50/openai', a folder in open_clip's layout, 'embedded:digits_clip'.
        plugin_manager: its plugins edit every recipe.
        shots, seeds: the draws, see `few_shot.draw_shots`.
        store: synthetic images of the same classes; without it only methods on real images run. Variants of real images that are not among the shots
            of a run are left out of it.
        select: condition on the store's records.
        prompts: what the text tower is told, see `ClassPrompts`.
        steps: optimiser steps of every tuned head; default: 30 passes over the store in batches of 512, without a store 480.
        val_shots: validation images per class where there is no `val/`.
        lr_scales: factors on the published learning rates of tuned heads. With several, every head is trained with each and validation chooses; a
            head that sees no real image has none to choose on and takes the first.
        cache: folder of the features.
        device: where missing features are made.
        jobs: tunings at the same time.
        setup: called once in every process of them (`plugins.register_nouns`).
        progress: takes one line per finished step.

    Raises:
        DataError, ModelError, StoreError, RecipeError: what cannot work, before any weights load.
        RunFailed: a tuning failed; its log is named.
        Stopped: Ctrl-C; finished runs are kept.
    """
    compat.apply()
    out, data = Path(out), Path(data).expanduser()
    check_numbers(shots, seeds, lr_scales, steps, jobs)
    refuse_foreign(out, OWN_FILES, 'few-shot study')
    parts = Parts.of(data, out)
    train, test, val = parts.train, parts.test, parts.val
    if val and val_shots is not None:
        raise RecipeError(f'--val-shots {val_shots} means nothing beside {str(data / "val")!r}.', 'Leave it out, or move the folder away.')
    draws = parts.draws(shots, seeds, val_shots)
    source = model_and_tag(model)
    clip, told = ClipModel(**source), ClassPrompts(**(prompts or {}))
    clip.check()
    told.check(train.classes, clip)
    records, sources = records_of(store, select, train.classes)
    if sources is not None:
        refuse_foreign_sources(sources, draws, str(store))
    steps = steps or (PASSES * -(-records // SYNTHETIC_BATCH) if records else STEPS_WITHOUT_STORE)
    where = choose_device(device)
    options = {**source, **(prompts or {}), 'classes': list(train.classes), 'cache': cache, 'device': str(where)}
    setting = Setting(data, options, None if store is None else str(store), select, steps, 0 if val else val_shots, sources is not None)
    teacher = store is not None and 'teacher_logits' in Store.open(store).score_column_names()

    started = time.monotonic()
    with alone(out, 'few-shot study'):
        features = FeatureCache(clip, cache)
        of = _Features(features, where)
        tested = of.of(test, {c: test.ids(c) for c in test.classes})
        validated = of.of(val, {c: val.ids(c) for c in val.classes}) if val else None
        if store is not None:  # here, for processes side by side would each encode all of it
            of.make(store, select)
        clip.load(where)
        texts = told.of(train.classes)
        embedded = tuple(clip.encode_texts(list(t)).cpu() for t in texts)
        tasks = {
            key: Task(train.classes, of.of(train, drawn.train), validated or of.of(train, drawn.val), embedded, clip.logit_scale)
            for key, drawn in draws.items()
        }
        progress(f'{len(features)} features in {features.path}, {features.encoded} made now ({time.monotonic() - started:.0f} s)')

        def result(method: str, k: int, seed: int, fitted: Fitted) -> Result:
            logits = fitted.logits(tested.features)
            found = Result(method, k, seed, top1(logits, tested.labels), recalls(logits, tested.labels, train.classes), fitted.chosen, fitted.val_top1)
            progress(f'{method}, {k} shots, seed {seed}: {found.top1:.1f} %')
            return found

        try:
            heads = tuned_heads(setting, str(clip.identity()['sha256']), draws, teacher, lr_scales, out, plugin_manager, jobs, setup, progress)
        except KeyboardInterrupt:
            raise Stopped(f'Stopped: {len(list(out.glob(f"runs/*/{RESULT}")))} tuned heads are in {out}.', 'The same command goes on from there.') from None
        results = [result('zero_shot', 0, 0, zero_shot(next(iter(tasks.values())), 0))]
        for (method, k, seed), (weight, bias, _) in heads.items():
            if k == 0:
                results.append(result(method, k, seed, Fitted(linear(weight, bias), {}, 0.0)))
        for (k, seed), task in tasks.items():
            results += [result(name, k, seed, fit(task, seed)) for name, fit in BASELINES.items() if name != 'zero_shot']
            for (method, of_k, of_seed), (weight, bias, found) in heads.items():
                if (of_k, of_seed) == (k, seed):
                    results.append(result(method, k, seed, Fitted(linear(weight, bias), found['chosen'], found['val'])))
            for name, base in (('wise_ft', REAL), ('wise_ft_mix', 'tuned_mix')):
                if (base, k, seed) in heads:
                    results.append(result(name, k, seed, wise_ft(task, *heads[base, k, seed][:2])))
        write_tables(out, results, train.classes, REAL)
        drawn_results = [r for r in results if r.method not in _NOT_DRAWN]
        draw_curve(out / CURVE, drawn_results, data.resolve().name, model, _footnote(setting, records, val is not None), NAMES)
        settings = {
            'command': _command(data, out, model, shots, seeds, store, select, prompts, steps, val_shots, lr_scales),
            'steps': steps,
            'synthetic_images': records,
            'validation': str(data / 'val') if val else 'images of train that are no shots',
            'seconds_of_tuning': {f'{m}/{k}/{s}': round(found['seconds'], 3) for (m, k, s), (_, _, found) in heads.items()},
            'clip': dict(clip.identity()),
            'prompts': dict(told.identity()),
            'versions': {'python': platform.python_version(), **versions()},
        }
        write_whole(out / SETTINGS, (json.dumps(settings, indent=1, ensure_ascii=False) + '\n').encode())
    return Study(results, train.classes, REAL)


def _footnote(setting: Setting, records: int, own_val: bool) -> str:
    further = 'min(shots, 4)' if setting.val_shots is None else setting.val_shots
    chosen = 'a validation folder' if own_val else f'{further} further real images per class'
    made = f' Synthetic: {records} images of {Path(setting.store).name}.' if setting.store else ''
    return f'Options and epochs chosen on {chosen}; test images read once. Tuned heads: {setting.steps} optimiser steps each.{made}'


def _command(
    data: Path,
    out: Path,
    model: str,
    shots: Sequence[int],
    seeds: Sequence[int],
    store: str | Path | None,
    select: str | None,
    prompts: Mapping[str, Any] | None,
    steps: int,
    val_shots: int | None,
    lr_scales: Sequence[float],
) -> str:
    words = ['synthaug', 'fewshot', '--data', str(data), '--out', str(out), '--model', model]
    words += ['--shots', ','.join(map(str, shots)), '--seeds', ','.join(map(str, seeds)), '--steps', str(steps)]
    words += ['--store', str(store)] if store is not None else []
    words += ['--where', select] if select is not None else []
    words += ['--val-shots', str(val_shots)] if val_shots is not None else []
    words += ['--lr-scales', ','.join(f'{scale:g}' for scale in lr_scales)] if tuple(lr_scales) != (1.0,) else []
    for key, value in (prompts or {}).items():
        words += [f'--{key}', str(value)]
    return shlex.join(words)
