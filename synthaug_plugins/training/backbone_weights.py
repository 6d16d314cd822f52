"""The backbone alone: out of a checkpoint of MMEngine, into a file that the next training starts from, and checked against the backbone it is for."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins import compat
from synthaug_plugins.errors import ModelError, RecipeError, first_line
from synthaug_plugins.store.files import write_whole

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

PREFIX = 'backbone.'
"""What MMPretrain's classifiers and self-supervised models call their encoder; in the latter it is the one that is trained by gradients."""
_EMA, _EMA_PREFIX = 'ema_state_dict', f'module.{PREFIX}'
_ADDRESS = re.compile(r'[\w.+-]+:')
"""How a checkpoint begins that MMEngine fetches: `torchvision://resnet50`, `https://...`."""
_LOADS_ITSELF = ('pretrained', 'checkpoint_path')


def load_backbone(checkpoint: str | Path, ema: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's backbone on the CPU, by name without `backbone.`.

    The checkpoint is one that MMEngine wrote (of MoCo, BYOL and their like: the online encoder), or a file of `save_backbone`. It is read with
    `weights_only`: no code in it runs.

    Args:
        checkpoint: a .pth file.
        ema: take the average that an EMAHook kept. By default the weights that the optimiser left, also where there is an average: beware that
            MMEngine's own `load_from` and `Pretrained` take the average then, since EMAHook saves it in the other's place.

    Raises:
        ModelError: no such file, one that cannot be read, one without a backbone, or `ema` where no average was kept.
    """
    name = str(checkpoint)
    content = read_checkpoint(checkpoint)
    averaged = isinstance(content.get(_EMA), Mapping)
    if ema and not averaged:
        raise ModelError(f'The checkpoint {name!r} holds no average of weights.', "Leave out ema, or train with custom_hooks=[dict(type='EMAHook')].")
    # EMAHook saves the average as state_dict and what the optimiser left as ema_state_dict.
    state, prefix = (content[_EMA], _EMA_PREFIX) if averaged and not ema else (content.get('state_dict', content), PREFIX)
    found = _tensors(state, prefix)
    if not found:
        keys = [str(key) for key in state][:3] if isinstance(state, Mapping) else []
        raise ModelError(
            f'The checkpoint {name!r} holds no weight of a {PREFIX[:-1]}; its first names are {", ".join(keys) or "none"}.',
            'Give a checkpoint of an MMPretrain model, such as training wrote; weights of timm and torchvision have other names.',
        )
    return found


def averages(checkpoint: str | Path) -> bool:
    """Whether a checkpoint holds two sets of weights: what the optimiser left, and the average of an EMAHook.

    Raises:
        ModelError: it cannot be read.
    """
    return isinstance(read_checkpoint(checkpoint).get(_EMA), Mapping)


def save_backbone(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write a backbone's weights, whole or not at all, as a file for `init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')`.

    The same weights give the same bytes.

    Args:
        state: by name without `backbone.`, see `load_backbone`.

    Raises:
        StoreError: the file cannot be written.
    """
    import torch

    buffer = io.BytesIO()
    torch.save({'state_dict': {PREFIX + key: value.detach().cpu() for key, value in state.items()}}, buffer)
    write_whole(Path(path), buffer.getvalue())


def skeleton(model: Mapping[str, Any], scope: str = 'mmpretrain') -> torch.nn.Module:
    """A model of a recipe without its weights (on torch's device meta, where its code allows that), to look at names and shapes.

    Args:
        model: its config; that of a backbone alone, too.
        scope: the recipe's `default_scope`.

    Raises:
        RecipeError: the config does not build.
    """
    compat.apply()
    import mmpretrain.models  # noqa: F401  (its registry finds them otherwise only under its own scope)
    import torch
    from mmengine.registry import MODELS, DefaultScope

    bare = {key: value for key, value in model.items() if key not in ('init_cfg', *_LOADS_ITSELF) or not value}
    if model.get('type') == 'synthaug_plugins.OpenClipVisual':  # there it is a name of weights without which the tower cannot be built
        bare = dict(model)
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with torch.device('meta'):
                return MODELS.build(bare)
        except Exception:  # some constructors look at values, which a tensor without storage has not
            try:
                return MODELS.build(bare)
            except Exception as error:  # foreign code
                raise RecipeError(f'The model {model.get("type")!r} cannot be built: {first_line(error)}.', 'Correct it in the recipe.') from error


def check_fits(state: Mapping[str, torch.Tensor], backbone: Mapping[str, Any], may_differ: Sequence[str] = (), scope: str = 'mmpretrain') -> None:
    """Refuse weights that are not those of a backbone, name by name and shape by shape. MMEngine's `Pretrained` would load what fits and go on.

    What a backbone itself does to weights when they are loaded, such as resizing position embeddings, is done before. Weights of the device meta
    will do.

    Args:
        state: by name without `backbone.`, see `load_backbone`.
        backbone: its config.
        may_differ: regular expressions; a weight in whose name one is found may be absent on either side.
        scope: the recipe's `default_scope`.

    Raises:
        RecipeError: the first weight that differs, with both shapes; a backbone that does not build; an expression that is not valid.
    """
    for pattern in may_differ:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(f'may_differ: {pattern!r} is not a regular expression: {error}.', 'Correct it.') from error
    module = skeleton(backbone, scope)
    given = _as_loaded(dict(state), module)
    wanted = module.state_dict()
    for key in [*wanted, *(key for key in given if key not in wanted)]:
        have, want = given.get(key), wanted.get(key)
        if have is not None and want is not None and have.shape == want.shape:
            continue
        one_sided = have is None or want is None
        if one_sided and (key.endswith('num_batches_tracked') or any(re.search(pattern, key) for pattern in may_differ)):
            continue
        there, here = ('no such weight' if tensor is None else str(tuple(tensor.shape)) for tensor in (have, want))
        cure = 'Give both the same backbone' + (f', or let it differ: may_differ={[f"^{re.escape(key)}$"]!r}.' if one_sided else '.')
        raise RecipeError(f'The weights do not fit the backbone {_type_name(backbone)}: {key} is {there} in the checkpoint and {here} in the recipe.', cure)


def check_start(cfg: Config, whole: bool = True) -> None:
    """Refuse (RecipeError) a recipe that starts from a file that is not there, or is not of its backbone. MMEngine would load what fits, and say nothing.

    Addresses (`torchvision://resnet50`) and weights of other libraries, which have other names, are the user's own affair.

    Args:
        whole: every weight must fit. MMPretrain's own recipes may leave some out on purpose (the last norm after MAE): False for what is not ours.
    """
    from synthaug_plugins.training.recipe_edit import pretrained

    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    starts = {'model.backbone.init_cfg': pretrained(backbone), 'model.init_cfg': pretrained(model), 'load_from': {'checkpoint': cfg.get('load_from')}}
    for where, start in starts.items():
        name = str((start or {}).get('checkpoint') or '')
        if start is None or not name or _ADDRESS.match(name):
            continue
        file = Path(name).expanduser()
        if not file.is_file():
            raise RecipeError(f'{where} starts from {name!r}, and there is no such file.', 'Correct the path, or make the file first.')
        if not whole:
            continue
        try:
            given = load_backbone(file)
        except ModelError:
            continue
        prefix = str(start.get('prefix') or '').removesuffix('.')
        if prefix != (PREFIX.removesuffix('.') if 'backbone' in where else ''):
            what = f'{where} has prefix={start.get("prefix")!r}, with which MMEngine takes nothing over from {name!r}.'
            raise RecipeError(what, f"Write model.backbone.init_cfg=dict(type='Pretrained', checkpoint=..., prefix={PREFIX!r}).")
        check_fits(given, backbone, scope=str(cfg.get('default_scope') or 'mmpretrain'))


def _type_name(backbone: Mapping[str, Any]) -> str:
    from synthaug_plugins.training.recipe_edit import type_name

    return type_name(backbone)


def _as_loaded(state: dict[str, Any], module: torch.nn.Module) -> dict[str, Any]:
    """Weights after the backbone's own changes at loading (MMPretrain's transformers resize what depends on the image size)."""
    for name, part in module.named_modules():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # nothing is copied into a model on the device meta
            try:
                # As MMEngine's load_state_dict calls it: the hooks of a module change `state` in place. Shapes are compared afterwards.
                part._load_from_state_dict(state, f'{name}.' if name else '', {}, True, [], [], [])
            except (RuntimeError, NotImplementedError, AttributeError, ValueError):
                continue  # weights of another architecture: the comparison says which
    return state


def read_checkpoint(checkpoint: str | Path) -> dict[str, Any]:
    """All that a checkpoint holds, tensors mapped. No code in it runs.

    Raises:
        ModelError: no such file, or one that cannot be read.
    """
    compat.apply()
    import torch

    path, name = Path(checkpoint).expanduser(), str(checkpoint)
    if not path.is_file():
        raise ModelError(f'The checkpoint {name!r} does not exist.', 'Give a .pth file on this machine; one from the network is downloaded first.')
    try:
        # Mapped: an optimiser's state, twice the size of the weights, is not read. Files of before torch 1.6 cannot be.
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f'The checkpoint {name!r} holds more than weights, and loading it could run code: {first_line(error)}.',
            "Save its weights alone, where you trust it: torch.save({'state_dict': ...}).",
        ) from error
    except Exception as error:  # torch raises what its reader meets
        raise ModelError(f'The checkpoint {name!r} cannot be read: {first_line(error)}.', 'It is damaged or no checkpoint of torch.') from error
    if not isinstance(content, Mapping):
        raise ModelError(f'The checkpoint {name!r} holds a {type(content).__name__}, no weights by name.', 'Give a checkpoint that training wrote.')
    return dict(content)


def _tensors(state: Any, prefix: str) -> dict[str, torch.Tensor]:
    import torch

    named = state.items() if isinstance(state, Mapping) else ()
    return {key.removeprefix(prefix): value.clone() for key, value in named if isinstance(value, torch.Tensor) and str(key).startswith(prefix)}
