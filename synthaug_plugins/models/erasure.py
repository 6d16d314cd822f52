"""Concept erasures: for each class a change of a U-Net's weights after which the model no longer draws that class (ESD, Gandikota et al., ICCV 2023)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import DataError, ModelError, nearest
from synthaug_plugins.models.inside import inside
from synthaug_plugins.weights import file_hash, read_json, save_json, save_tensors, tensor_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from synthaug_plugins.models.base import KnownModel

ERASURES = 'erasures.json'
"""The card of a folder of erasures."""
FORMAT = 1
KINDS = ('lora', 'full')
UNET = 'unet.'  # before a name in a low-rank file, as diffusers' pipelines look for it
_A, _B = '.lora_A.weight', '.lora_B.weight'


class Erasures:
    """A folder with the card erasures.json and one safetensors file per class.

    The files hold either kind of change, for one U-Net:
    - 'lora': for a touched linear layer or convolution the factors `unet.<layer>.lora_A.weight` and `unet.<layer>.lora_B.weight`, float32; the
      new weight is W = W0 + B A. diffusers' own `pipeline.load_lora_weights(file)` reads the file.
    - 'full': the new weights by their names in the U-Net, float32, for `unet.load_state_dict(load_file(file), strict=False)`.

    Args:
        folder: as `synthaug learn erasure` writes it. Only the card is read here.

    Attributes:
        folder: as given.
        card: what erasures.json says.
        classes: whose erasures there are.
        kind: 'lora' or 'full'.

    Raises:
        ModelError: no such folder, no card, or one that is damaged or of a later format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / ERASURES
        if not path.is_file():
            inner = self.folder / 'erasures'
            hint = f' Did you mean {str(inner)!r}?' if (inner / ERASURES).is_file() else ''
            raise ModelError(f'erasures = {str(folder)!r}: there is no {ERASURES} in it.', f'Give the folder that `synthaug learn erasure` wrote.{hint}')
        self.card = read_json(inside(self.folder, path))
        if self.card.get('format') != FORMAT:
            raise ModelError(f'{str(path)!r} has format = {self.card.get("format")!r}, known is {FORMAT}.', 'Learn the erasures again, or use a newer version.')
        classes = self.card.get('classes')
        if self.card.get('weights') not in KINDS or not isinstance(self.card.get('model'), dict) or not isinstance(classes, dict):
            raise ModelError(f'{str(path)!r} is damaged: weights, model or classes are missing.', 'Copy the folder again.')
        for name, entry in classes.items():
            # The name is followed to a file, so it must not lead out of the folder.
            if not isinstance(entry, dict) or entry.get('file') != erasure_file(name) or not isinstance(entry.get('sha256'), str):
                raise ModelError(f'{str(path)!r} is damaged: the entry of the class {name!r} is {entry!r}.', 'Copy the folder again.')
        self.kind: str = self.card['weights']
        self.classes = tuple(classes)

    def _file(self, class_name: str) -> Path:
        if class_name not in self.card['classes']:
            what = f'erasures = {str(self.folder)!r} has nothing for the class {class_name!r}.'
            raise DataError(what, f'Learn it: synthaug learn erasure ... --classes {class_name!r}. {nearest(class_name, self.classes)}')
        return inside(self.folder, self.folder / str(self.card['classes'][class_name]['file']))

    def check(self, model: KnownModel, shapes: Mapping[str, tuple[int, ...]], classes: Sequence[str]) -> None:
        """Refuse erasures that cannot be applied, before any weights load.

        Args:
            model: that they are for.
            shapes: of its network's weights, by name (`TextPipeline.network_shapes`).
            classes: whose erasures are needed.

        Raises:
            DataError: a class has none; it is named.
            ModelError: they were learned on another model, or a file is missing, changed, or holds a tensor that does not fit the network.
        """
        if not model.has_origin(self.card['model']):
            what = f'erasures = {str(self.folder)!r} were learned on {self.card["model"].get("name")!r} of other content than {model.name!r}.'
            raise ModelError(what, 'Use the model that they were learned on, or learn them on this one.')
        for name in classes:
            path = self._file(name)
            if not path.is_file():
                raise ModelError(f'{str(path)!r} is missing, the erasure of the class {name!r}.', 'Copy the folder again.')
            if file_hash(path) != self.card['classes'][name]['sha256']:
                raise ModelError(f'{str(path)!r} does not have the hash that {ERASURES} names.', 'Copy the folder again.')
            for parameter, shape in self._shapes(path).items():
                if shapes.get(parameter) != shape:
                    what = f'{str(path)!r} changes {parameter!r} of the shape {shape}, the network of {model.name!r} has {shapes.get(parameter, "none")}.'
                    raise ModelError(what, 'Learn the erasures again.')

    def _shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that a file changes, by parameter name, from its header."""
        shapes, _ = tensor_shapes(path)
        if self.kind == 'full':
            return shapes
        return {_layer(name) + '.weight': (shapes[_partner(name)][0], *shape[1:]) for name, shape in shapes.items() if name.endswith(_A)}

    def hashes(self, classes: Sequence[str]) -> dict[str, str]:
        """Class -> SHA-256 of its file: what was learned on the erased model is bound to it.

        Raises:
            DataError: a class has none.
        """
        return {name: str(self.card['classes'][name]['sha256']) for name in classes if self._file(name)}

    def identity(self) -> dict[str, Any]:
        """What decides the pixels: plain JSON, the SHA-256 over names and contents of all classes' files."""
        files = self.hashes(self.classes)
        return {'weights': self.kind, 'sha256': hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()}

    def parameters(self, class_name: str) -> list[str]:
        """Names of the network's parameters that the erasure of a class changes; DataError for a class without one."""
        return list(self._shapes(self._file(class_name)))

    def changed(self, class_name: str, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New values of the touched parameters, each in the dtype and on the device of its original.

        Args:
            originals: by parameter name, at least those of `parameters(class_name)`.

        Raises:
            DataError: the class has no erasure.
        """
        from safetensors.torch import load_file

        tensors = load_file(self._file(class_name))
        if self.kind == 'full':
            return {name: value.to(originals[name]) for name, value in tensors.items()}
        found = {}
        for key in (key for key in tensors if key.endswith(_A)):
            name = _layer(key) + '.weight'
            W0 = originals[name]
            found[name] = low_rank(W0, tensors[key].to(W0.device), tensors[_partner(key)].to(W0.device))
        return found


class Eraser:
    """Switches a network between its own weights and those with one class erased, in place: what torch.compile made of it stays valid.

    The originals of touched parameters are kept once and copied back, so that the network's own weights return to the bit.

    Args:
        erasures: see `Erasures`.
        network: the U-Net, with its original weights.
    """

    def __init__(self, erasures: Erasures, network: torch.nn.Module) -> None:
        self._erasures, self._parameters = erasures, dict(network.named_parameters())
        self._originals: dict[str, Tensor] = {}
        self._touched: list[str] = []
        self.erased: str | None = None

    def __call__(self, class_name: str | None) -> None:
        """Erase this class, and only this one; None: none.

        Raises:
            DataError: the class has no erasure.
        """
        import torch

        if class_name == self.erased:
            return
        touched = [] if class_name is None else self._erasures.parameters(class_name)
        with torch.no_grad():
            for name in touched:
                if name not in self._originals:
                    self._originals[name] = self._parameters[name].detach().clone()
            changed = {} if class_name is None else self._erasures.changed(class_name, self._originals)
            for name in self._touched:
                if name not in changed:
                    self._parameters[name].copy_(self._originals[name])
            for name, value in changed.items():
                self._parameters[name].copy_(value)
        self._touched, self.erased = touched, class_name


def low_rank(W0: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """W0 + B A, worked out in float32 and rounded to the dtype of W0 once.

    Args:
        W0: weight of a linear layer (out, in) or of a convolution (out, in, h, w).
        A: (r, in) or (r, in, h, w), float32.
        B: (out, r) or (out, r, 1, 1), float32.
    """
    return (W0.float() + (B.flatten(1) @ A.flatten(1)).reshape(W0.shape)).to(W0.dtype)


def check_family(name: str, family: str, what: str) -> None:
    """Refuse (ModelError) a model of a family whose network is no U-Net; `what` was asked for begins the message."""
    if family not in ('sd', 'sdxl'):
        raise ModelError(f'{what}: {name!r} is of the family {family}, which has no U-Net.', 'Erasure is for Stable Diffusion 1, 2 and XL.')


def erasure_file(class_name: str) -> str:
    """The file name of a class's erasure: the name itself where it is plain, else what is plain of it and a hash.

    Plain are lower-case letters, digits, - and _, so that no two classes share a file where case does not count, and no name leads elsewhere.

    >>> erasure_file('three'), erasure_file('St. Bernard')
    ('three.safetensors', 'st-bernard~7f7f71a5.safetensors')
    """
    if re.fullmatch(r'[a-z0-9_-]{1,64}', class_name):
        return f'{class_name}.safetensors'
    plain = re.sub(r'[^a-z0-9]+', '-', class_name.lower()).strip('-')[:40]
    return f'{plain}~{hashlib.sha256(class_name.encode()).hexdigest()[:8]}.safetensors'


def lora_tensors(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The content of a 'lora' file from (A, B) by layer."""
    named: dict[str, Tensor] = {}
    for layer, (A, B) in factors.items():
        named |= {f'{UNET}{layer}{_A}': A, f'{UNET}{layer}{_B}': B}
    return named


def save_erasure(
    folder: Path, card: Mapping[str, Any], class_name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Add a class to a folder of erasures: its file first, then the card that names it. Returns the new card.

    A class that is there already is replaced.

    Args:
        folder: made if need be.
        card: what erasures.json shall say, with `classes` as they were before.
        tensors: content of the file, see `Erasures`.
        about: what else the card says of the class.
    """
    path = folder / erasure_file(class_name)
    save_tensors(path, tensors)
    entry = {'file': path.name, 'sha256': file_hash(path), **(about or {})}
    known = {**card, 'classes': {**card['classes'], class_name: entry}}
    save_json(folder / ERASURES, known)
    return known


def _layer(key: str) -> str:
    """The layer that a factor belongs to."""
    return key.removeprefix(UNET).removesuffix(_A)


def _partner(key: str) -> str:
    """The name of B beside that of A."""
    return key.removesuffix(_A) + _B
