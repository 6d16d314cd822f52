"""A language model that writes sentences around a word: through transformers, safetensors only, no code from elsewhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import ModelError, first_line
from synthaug_plugins.prompts.templates import fill
from synthaug_plugins.weights import CARD, EMBEDDED, embedded_folder, file_hash, quiet_loading

COMMON_GEN = 'mrm8488/t5-base-finetuned-common_gen'
"""T5-base fine-tuned on CommonGen (words in, a sentence with them out), which He et al. (ICLR 2023) use."""
ASK_WRITER = 'a {}'
"""What a word-to-sentence model is given: the class name with an article in front, as in the paper's code."""
ASK_ASSISTANT = 'Write one short caption, at most 15 words, of a photo that shows: {}. Use these very words. Answer with the caption alone.'
"""What a model that follows instructions is asked."""


def offline() -> bool:
    """Whether the user forbids network access (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    return any(os.environ.get(key, '').lower() in ('1', 'true', 'yes', 'on') for key in ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'))


def _path(model: str) -> Path:
    """Where a model lies if it is no hub name: the folder of `embedded:NAME`, else the path as it stands."""
    return embedded_folder(model) if model.startswith(EMBEDDED) else Path(model).expanduser()


def model_identity(model: str, revision: str | None = None) -> dict[str, Any]:
    """What makes a model this one, found without loading it: a hub name with its revision, or the SHA-256 of a folder's files but its card.

    Raises:
        ModelError: a folder that lacks its config or safetensors weights, a path to no folder, or no embedded model of this name.
    """
    folder = _path(model)
    if not model or not folder.is_dir():
        if folder.exists() or model.startswith(('/', '.', '~')) or model.count('/') > 1:
            raise ModelError(f'language model = {model!r} is no folder.', 'Give the folder that save_pretrained wrote, or a name on the Hugging Face hub.')
        return {'model': model, 'revision': revision}
    weights = _weights(folder)
    digest = hashlib.sha256()
    for path in sorted([*weights, *folder.glob('*.json'), *folder.glob('*.model'), *folder.glob('*.txt'), *folder.glob('*.jinja')]):
        if path.name != CARD:
            digest.update(f'{path.name} {file_hash(path)}\n'.encode())
    return {'sha256': digest.hexdigest()}


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; ModelError if it lacks them or its config."""
    weights = sorted(folder.glob('*.safetensors'))
    missing = 'config.json' if not (folder / 'config.json').is_file() else '*.safetensors' if not weights else None
    if missing:
        pickles = [p.name for p in folder.iterdir() if p.suffix in {'.bin', '.pt', '.pth', '.pkl'}]
        hint = f' {pickles[0]!r} is a pickle, which can run code when loaded: convert it to safetensors.' if pickles and weights == [] else ''
        raise ModelError(f'language model = {str(folder)!r}: {missing} is missing in the folder.', f'Save it again with save_pretrained.{hint}')
    return weights


class SentenceWriter:
    """A sequence-to-sequence or causal language model of transformers, loaded.

    Args:
        model: name on the Hugging Face hub, local folder, or `embedded:NAME`.
        revision: branch, tag or commit of a hub model.
        instruction: what it is asked, `{}` for the class name. Default: `ASK_WRITER` or `ASK_ASSISTANT`, by the model's kind.
        device: where it runs.

    Attributes:
        commit: the hub commit that was loaded, None for a folder.

    Raises:
        ModelError: not there (offline: without any attempt to reach the network), no safetensors, of another kind, or cut short.
    """

    def __init__(self, model: str, revision: str | None, instruction: str | None, device: str) -> None:
        import transformers
        from safetensors import SafetensorError

        try:
            folder = _folder(model, revision)
            _weights(folder)  # a hub cache can be as incomplete as any folder
            # A folder and nothing else: given a hub name, transformers asks the hub even where only local files are allowed.
            safe = {'local_files_only': True, 'trust_remote_code': False}
            config = transformers.AutoConfig.from_pretrained(folder, **safe)
            kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
            with quiet_loading():
                self.model = kind.from_pretrained(folder, use_safetensors=True, dtype='auto', **safe).eval().to(device)
        except (OSError, ValueError, TypeError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
            raise _refusal(model, error) from error
        self.device, self.commit = device, None if _path(model).is_dir() else folder.name
        self.instruction = instruction or (ASK_WRITER if config.is_encoder_decoder else ASK_ASSISTANT)

    def write(self, name: str, count: int, seed: int, **sampling: Any) -> list[str]:
        """`count` sampled texts about `name`; equal for equal (seed, count, sampling, device, versions).

        Args:
            sampling: temperature, top_p, top_k, max_new_tokens.
        """
        import torch

        asked = fill(self.instruction, name)
        if getattr(self.tokenizer, 'chat_template', None):
            chat = [{'role': 'user', 'content': asked}]
            asked = str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
            given = self.tokenizer(asked, return_tensors='pt', add_special_tokens=False)
        else:
            given = self.tokenizer(asked, return_tensors='pt')
        given = {k: given[k].to(self.device) for k in ('input_ids', 'attention_mask')}
        on_cuda = [torch.device(self.device)] if self.device.startswith('cuda') else []
        with torch.random.fork_rng(on_cuda), torch.inference_mode():
            torch.manual_seed(seed)
            made = self.model.generate(**given, do_sample=True, num_beams=1, num_return_sequences=count, **sampling)
        if not self.model.config.is_encoder_decoder:
            made = made[:, given['input_ids'].shape[1] :]
        return list(self.tokenizer.batch_decode(made, skip_special_tokens=True))


def _folder(model: str, revision: str | None) -> Path:
    """A model's folder; for a hub name the hub's own cache, filled first unless the user is offline. No pickle and no code is fetched."""
    if (folder := _path(model)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    parts = ['*.json', '*.safetensors', '*.model', '*.txt', '*.jinja']
    return Path(snapshot_download(model, revision=revision, local_files_only=offline(), allow_patterns=parts, ignore_patterns=['*/*']))


def _refusal(model: str, error: Exception) -> ModelError:
    what = f'The language model {model!r} cannot be loaded: {first_line(error)}.'
    if isinstance(error, ImportError):
        return ModelError(what, 'Install what its tokenizer needs, usually: pip install sentencepiece protobuf.')
    if _path(model).is_dir():
        return ModelError(what, 'Save the folder again with save_pretrained: config, tokenizer and safetensors weights.')
    if offline():
        return ModelError(what, f"HF_HUB_OFFLINE is set: fetch it once with 'hf download {model}' where there is a network, or give a local folder.")
    return ModelError(what, 'Check name, revision and network; the model needs safetensors weights. Or give a local folder.')
