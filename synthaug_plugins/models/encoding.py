"""Prompts to conditions, each unique prompt once; and the safety checker that some pipelines bring."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.models.families import Family, Told, scale_embedding

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from synthaug_plugins.models.files import ModelFiles

KEPT_BYTES = 512 * 2**20


class PromptEncoder:
    """The text side of a pipeline: a pipeline object with encoders and tokenizers, and what it has encoded so far.

    A prompt is encoded alone, so that its bits do not depend on what it shares a batch with, and kept by its text. What was not
    asked for the longest is dropped beyond `KEPT_BYTES`.

    Args:
        family: of the pipeline.
        pipeline: object of the pipeline's class, with at least the text encoders and tokenizers.
        options: what `Family.encode` needs.
    """

    def __init__(self, family: Family, pipeline: Any, options: dict[str, Any]) -> None:
        self.family, self.pipeline, self._options = family, pipeline, options
        self._kept: OrderedDict[tuple[str, bool], dict[str, Any]] = OrderedDict()
        self._bytes = 0

    def __call__(self, prompts: Sequence[str], negative: bool = False) -> dict[str, Any]:
        """Conditions with one row per prompt: tensors, or mappings of tensors, as the network names them.

        Args:
            negative: prompts to move away from, which some families encode in another way (an empty one, an instruction before it).
        """
        rows = []
        for prompt in prompts:
            key = (prompt, negative)
            if key not in self._kept:
                self._kept[key] = self.family.conditions(self.told(prompt, negative), self._options)
                self._bytes += _size(self._kept[key])
            self._kept.move_to_end(key)
            rows.append(self._kept[key])
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return _stacked(rows)

    def told(self, prompt: str, negative: bool = False) -> Told:
        """A prompt encoded, one row; it is not kept."""
        import torch

        with torch.inference_mode(False), torch.no_grad():
            return self.family.encode(self.pipeline, prompt, negative, self._options)

    def forget(self) -> None:
        """Drop what is kept: an encoder changed."""
        self._kept.clear()
        self._bytes = 0


def text_pipeline(family: Family, cls: Any, index: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """An object of a pipeline's class with what its `encode_prompt` uses; the rest is None.

    Args:
        family: of the pipeline.
        cls: its class.
        index: what model_index.json says.
        parts: component -> encoder, tokenizer, or the network (SD 3 reads its config), loaded.
    """
    parameters = inspect.signature(cls.__init__).parameters
    made: dict[str, Any] = {name: None for name, p in parameters.items() if name != 'self' and p.default is inspect.Parameter.empty}
    made |= {name: value for name, value in index.items() if name in parameters and not isinstance(value, list)}
    made |= {name: False for name in ('requires_safety_checker', 'add_watermarker') if name in parameters}
    if family.name != 'sd3':
        return cls(**{**made, **parts})
    pipeline = cls(**{**made, **parts, **_absent_clips(family, parts)})
    if not set(family.limit_by) & set(parts):
        pipeline.tokenizer_max_length = 77  # of the CLIPs, not of the tokenizer that stands in for theirs
    return pipeline


def _absent_clips(family: Family, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Stand-ins for the CLIPs that are missing, with any tokenizer; together the two have the width that the network wants."""
    clips, network = family.limit_by, parts[family.network]
    missing = [e for e in clips if e not in parts]
    left = network.config['pooled_projection_dim'] - sum(parts[e].config.projection_dim for e in clips if e in parts)
    made: dict[str, Any] = {e: absent_clip(left // len(missing), next(network.parameters())) for e in missing}
    tokenizer = next(part for name, part in parts.items() if name.startswith('tokenizer'))
    return made | {e.replace('text_encoder', 'tokenizer'): tokenizer for e in missing}


def absent_clip(width: int, like: torch.Tensor) -> Any:
    """In place of a CLIP that a pipeline of SD 3 comes without: zeros, as the model was trained to do without it (Esser et al. 2024, section 5.1).

    Args:
        width: of its hidden states and of its pooled vector, which for SD 3 are the same.
        like: a tensor of the dtype and on the device wanted.
    """
    import torch

    class _AbsentClip(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dtype, self.device = like.dtype, like.device

        def forward(self, input_ids: Tensor, output_hidden_states: bool = True) -> Any:
            hidden = like.new_zeros(()).expand(*input_ids.shape, width)
            return _ClipOutput((hidden[:, 0], (hidden, hidden)))

    return _AbsentClip()


class _ClipOutput(tuple):  # type: ignore[type-arg]
    """(pooled, hidden states) as transformers gives them."""

    @property
    def hidden_states(self) -> Any:
        return self[1]


def told_scale(guidance_scale: float | Sequence[float] | Tensor, count: int, dim: int | None, device: torch.device) -> dict[str, Tensor]:
    """The guidance scale as a distilled network is told it.

    Args:
        guidance_scale: one number, or one per row.
        count: rows.
        dim: `time_cond_proj_dim` of a U-Net; None for the transformers, which take the number itself.

    Raises:
        RecipeError: another number of scales than rows.
    """
    import torch

    if isinstance(guidance_scale, int | float):  # not copied from the host, which would wait for the device
        scales = torch.full((), guidance_scale, dtype=torch.float32, device=device)
    else:
        scales = torch.as_tensor(guidance_scale, dtype=torch.float32, device=device)
    if scales.ndim > 1 or (scales.ndim == 1 and len(scales) != count):
        raise RecipeError(f'guidance_scale has the shape {tuple(scales.shape)} for {count} prompts.', 'Give one number, or one per prompt.')
    scales = scales.expand(count)
    return {'guidance': scales.clone()} if dim is None else {'timestep_cond': scale_embedding(scales, dim)}


class SafetyChecker:
    """The classifier of unsafe images that Stable Diffusion 1 brings.

    Args:
        files: of the pipeline, with the folders safety_checker and feature_extractor.
        device, dtype: where and how it runs.

    Raises:
        ModelError: its weights are missing or cannot be read.
    """

    def __init__(self, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        self._model = files.load('safety_checker', StableDiffusionSafetyChecker, dtype, 'transformers').to(device)
        self._extract = CLIPImageProcessor.from_pretrained(str(files.folder / 'feature_extractor'), local_files_only=True)
        self._device, self._dtype = device, dtype

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Which images it takes for unsafe: (B,) bool. images: (B, H, W, 3) uint8; they are left as they are."""
        import numpy as np
        import torch
        from PIL import Image

        pixels = self._extract([Image.fromarray(image) for image in images], return_tensors='pt').pixel_values
        with torch.no_grad():  # it blackens what it is given beside the pixels
            _, found = self._model(clip_input=pixels.to(self._device, self._dtype), images=[np.zeros(1) for _ in images])
        return np.asarray(found, dtype=bool)


def _size(conditions: Mapping[str, Any]) -> int:
    return sum(_size(v) if isinstance(v, Mapping) else v.nbytes for v in conditions.values())


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mappings of single rows as one mapping of batches."""
    import torch

    return {
        key: _stacked([row[key] for row in rows]) if isinstance(value, Mapping) else torch.cat([row[key] for row in rows]) for key, value in rows[0].items()
    }
