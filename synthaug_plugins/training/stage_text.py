"""Stages as separate config files, which MMPretrain's own tools/train.py or any other launcher trains one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.new_folder import new_folder
from synthaug_plugins.training.backbone_weights import averages, load_backbone, save_backbone
from synthaug_plugins.training.run import explain
from synthaug_plugins.training.stages import BACKBONE, INIT, Stage, placed


def stage_texts(stages: Sequence[Stage], work_dir: str | Path, init: str | None = None) -> dict[str, str]:
    """File name and content of each stage, in order. Each names its own work folder, and the file in it from which the next one starts.

    Args:
        stages: from `stages.read_stages`.
        work_dir: the stages' folders lie below it; a relative one is relative to where the files are run.
        init: a file of `save_backbone` in the place of the first stage's checkpoint.

    Raises:
        RecipeError: the first stage's checkpoint holds two sets of weights and the config cannot say which; `write_stages` writes the right one.
    """
    texts: dict[str, str] = {}
    start = init or stages[0].init
    if start is not None and init is None and averages(start):
        what = f'{start!r} holds trained weights and their average, and MMEngine would choose by itself.'
        raise RecipeError(what, 'Write the files with --out FOLDER: the right weights are then put beside them.')
    for number, stage in enumerate(stages):
        folder = str(Path(work_dir) / stage.name)
        leaves = number + 1 < len(stages)
        text = explain(placed(stage, folder, start, leaves, leaves and stages[number + 1].ema))
        texts[f'{stage.name}.py'] = f'# Stage {number + 1} of {len(stages)}: python tools/train.py {stage.name}.py\n{text}'
        start = str(Path(folder) / BACKBONE)
    return texts


def write_stages(stages: Sequence[Stage], out: str | Path, work_dir: str | Path) -> list[Path]:
    """Write the files of `stage_texts` into a new or empty folder, all or none; with the backbone that the first stage starts from, if there is one.

    Raises:
        RecipeError: the folder is not empty or cannot be written.
        ModelError: see `load_backbone`.
    """
    out = Path(out)
    init = None if stages[0].init is None else str(out / INIT)
    texts = stage_texts(stages, work_dir, init)
    with new_folder(out, RecipeError) as folder:
        if stages[0].init is not None:
            save_backbone(load_backbone(stages[0].init, stages[0].ema), folder / INIT)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding='utf-8')
    return [out / name for name in texts]
