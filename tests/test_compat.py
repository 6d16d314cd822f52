"""Stock MMEngine, MMCV and MMPretrain work on today's torch, NumPy and setuptools; each shim is needed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# name -> a script that fails without the shim and ends well with it.
FAULTS = {
    'checkpoints': """
        import torch, numpy as np
        from mmengine.logging import MessageHub
        from mmengine.runner import load_checkpoint
        hub = MessageHub.get_instance('x')
        hub.update_scalar('loss', 1.0)
        hub.update_info('best', np.float64(3))
        model = torch.nn.Linear(1, 1)
        torch.save(dict(state_dict=model.state_dict(), message_hub=hub.state_dict()), 'x.pth')
        loaded = load_checkpoint(model, 'x.pth')
        assert loaded['message_hub']['log_scalars']['loss'].current() == 1.0
    """,
    'pkg_resources': """
        from mmengine.config import Config
        from mmengine.utils import get_installed_path, is_installed
        open('r.py', 'w').write("_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'")
        assert Config.fromfile('r.py').model.type == 'ImageClassifier'
        assert is_installed('mmpretrain') and not is_installed('no-such-package')
        assert get_installed_path('mmpretrain').endswith('mmpretrain')
        assert not is_installed('mmcv-lite') or get_installed_path('mmcv-lite').endswith('mmcv')
    """,
    'hue': """
        import cv2, mmcv, numpy as np
        red = np.zeros((2, 2, 3), np.uint8); red[..., 2] = 255
        magenta = mmcv.adjust_hue(red, -1 / 6)
        assert magenta[0, 0, 0] > 240 and magenta[0, 0, 1] < 15 and magenta[0, 0, 2] > 240, magenta[0, 0]
        import numpy as np
        from mmpretrain.datasets.transforms import ColorJitter
        for _ in range(20): ColorJitter(hue=0.5)(dict(img=red))
    """,
    'in1d': """
        import torch
        from mmpretrain.evaluation import RetrievalRecall
        assert RetrievalRecall.calculate([[0]], [[0, 1]], topk=1, pred_indices=True, target_indices=True)[0] == 100
    """,
    'subset': """
        from mmengine.dataset import BaseDataset, Compose
        class Numbers(BaseDataset):
            def load_data_list(self): return [dict(n=i) for i in range(4)]
        for i in range(500):
            subset = Numbers(ann_file='', pipeline=[lambda x: x], serialize_data=False).get_subset([0, 1])
            if not isinstance(subset.pipeline, Compose): raise TypeError(f'Error: the pipeline is a {type(subset.pipeline)} in round {i}')
    """,
    'multimodal': """
        import mmpretrain.models
    """,
}
FAKE_PYCOCOTOOLS = {'pycocotools/__init__.py': '', 'pycocotools-2.0.8.dist-info/METADATA': 'Metadata-Version: 2.1\nName: pycocotools\nVersion: 2.0.8\n'}


def run(script: str, folder: Path, shims: list[str]) -> subprocess.CompletedProcess:
    """Run a script in a fresh process with only these shims."""
    head = f'from synthaug_plugins import compat\nfor s in compat.SHIMS:\n    if s.name in {shims!r} and s.present(): s.mend()\n'
    env = {'PYTHONPATH': str(folder), 'PATH': '/usr/bin:/bin', 'HOME': str(folder), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-c', head + textwrap.dedent(script)], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize('name', FAULTS)
def test_each_shim_mends_a_fault_that_is_there_without_it(name: str, tmp_path: Path) -> None:
    if name == 'multimodal':
        for file, text in FAKE_PYCOCOTOOLS.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(text)
    from synthaug_plugins.compat import SHIMS

    others = [s.name for s in SHIMS if s.name != name]
    without = run(FAULTS[name], tmp_path, others)
    mended = run(FAULTS[name], tmp_path, [*others, name])
    assert mended.returncode == 0, mended.stderr[-2000:]
    if without.returncode == 0:
        pytest.skip(f'the installed family has not the fault {name!r}: the shim rests')
    assert 'Error' in without.stderr


def test_checkpoint_shim_does_not_open_the_door_to_code(tmp_path: Path) -> None:
    script = """
        import os, pickle, torch
        from mmengine.logging import HistoryBuffer
        class Bomb:
            def __init__(self, how): self.how = how
            def __reduce__(self): return self.how
        for how in ((os.system, ('touch pwned',)), (getattr, (HistoryBuffer, '__init__')), (getattr, (dict, 'pop'))):
            torch.save({'a': Bomb(how)}, 'bomb.pth')
            try:
                torch.load('bomb.pth')
            except (pickle.UnpicklingError, AttributeError):
                continue
            raise SystemExit(f'loaded {how}')
        assert not os.path.exists('pwned')
    """
    done = run(script, tmp_path, ['checkpoints'])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_every_shim_is_tested() -> None:
    from synthaug_plugins.compat import SHIMS

    assert {s.name for s in SHIMS} == set(FAULTS)
