"""What the scripts that train a CLIP from nothing share: the tokenizer of few words, and the loss."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def merges(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Byte pair merges, in order, that make one token of every word. Tokens that end a word end in '</w>'.

    Byte pair encoding as CLIP uses it (Sennrich et al. 2016): of all neighbours the pair found most often is merged, ties by spelling.
    """
    spelled = [[*word[:-1], f'{word[-1]}</w>'] for word in words]
    done: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for tokens in spelled:
            for pair in itertools.pairwise(tokens):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return tuple(done)
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        done.append(best)
        for tokens in spelled:
            for i in range(len(tokens) - 2, -1, -1):
                if tuple(tokens[i : i + 2]) == best:
                    tokens[i : i + 2] = [''.join(best)]


def write_tokenizer(folder: Path, joined: Sequence[tuple[str, str]], context_length: int) -> CLIPTokenizer:
    """Write a CLIP tokenizer into `folder` (vocab.json, merges.txt, tokenizer_config.json, ...) and load it.

    Lower case; a word that `joined` does not put together becomes letters, any other script bytes, so no text fails. The end token has
    the largest number and pads, as in OpenAI's CLIP, so both ways to find a text's end (largest number, end token) agree.

    Args:
        joined: see `merges`.
        context_length: most tokens of a text, start and end included.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f'{letter}</w>' for letter in letters), *(a + b for a, b in joined), '<|startoftext|>', '<|endoftext|>']
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / 'vocab.json').write_text(json.dumps(vocabulary, ensure_ascii=False), encoding='utf-8')
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *map(' '.join, joined)]) + '\n', encoding='utf-8')
    written = CLIPTokenizer(vocab=str(folder / 'vocab.json'), merges=str(folder / 'merges.txt'), model_max_length=context_length)
    written.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def contrastive(image: Tensor, text: Tensor, scale: Tensor, negative: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy over unit vectors (B, d), in which only the pairs of `negative` (B, B) stand against the right one."""
    right = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = (scale * image @ text.T).masked_fill(~(negative | right), -torch.inf)
    wanted = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
