"""Learned class words (textual inversion, Gal et al. 2022): their file, and how they enter a pipeline's tokenizers and text encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import DataError, ModelError, nearest
from synthaug_plugins.plain_json import parse_json
from synthaug_plugins.prompts.placeholders import word_of
from synthaug_plugins.weights import file_hash, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from synthaug_plugins.models.base import KnownModel
    from synthaug_plugins.models.erasure import Erasures

_FIRST = 'text_encoder'  # whose tensors are named by the word alone
_CARD = 'card'
_LEARN = 'Learn words for it: synthaug learn words.'


class Words:
    """A file of learned words: one word per class, of one or more vectors for each text encoder. Only its header is read, until `rows`.

    `save_words` writes it. The tensors of the first encoder are named by the word alone, so that on a pipeline of one encoder stock diffusers
    takes them one by one: `pipe.load_textual_inversion({word: rows})`.

    Args:
        file: .safetensors, as `synthaug learn words` writes it.

    Attributes:
        file: as given.
        card: what is known of the words, plain JSON: classes, model, how they were learned.
        classes: names of the classes that have a word.
        vectors: per word; how many tokens a word is, on each encoder.

    Raises:
        ModelError: no such file, or it holds no learned words.
    """

    def __init__(self, file: str | Path) -> None:
        from safetensors import SafetensorError

        self.file = Path(file).expanduser()
        cure = 'Give words.safetensors of a folder that `synthaug learn words` wrote.'
        if self.file.is_dir():
            raise ModelError(f'words = {str(file)!r} is a folder.', cure)
        if not self.file.is_file():
            raise ModelError(f'words = {str(file)!r}: there is no such file.', cure)
        try:
            self._shapes, said = tensor_shapes(self.file)
            self.card: dict[str, Any] = parse_json(said[_CARD])
            self.classes, self.vectors, self.encoders = _named(self.card)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f'words = {str(file)!r} holds no learned words: {error!r}.', cure) from error
        wanted = {tensor_name(encoder, word_of(name)) for encoder in self.encoders for name in self.classes}
        if wanted != set(self._shapes) or any(len(shape) != 2 or shape[0] != self.vectors for shape in self._shapes.values()):
            raise ModelError(f'words = {str(file)!r}: its tensors are not those that its card names.', 'Copy or save the file again.')

    def of(self, class_name: str) -> str:
        """The word of a class, such as '<cat>'.

        Raises:
            DataError: it has none.
        """
        if class_name not in self.classes:
            raise DataError(f'The class {class_name!r} has no word in {str(self.file)!r}.', f'{nearest(class_name, self.classes)} {_LEARN}')
        return word_of(class_name)

    @property
    def class_free(self) -> bool:
        """Whether every word was initialised without the name of its class: then nothing of the name is in it."""
        return 'word' in self.card.get('initialised_from', {})

    def rows(self, encoder: str) -> dict[str, Tensor]:
        """Word -> its vectors (vectors, width) float32 for an encoder's table, on the CPU.

        Args:
            encoder: 'text_encoder' or 'text_encoder_2'.
        """
        from safetensors import safe_open

        with safe_open(self.file, 'pt') as opened:
            return {word_of(name): opened.get_tensor(tensor_name(encoder, word_of(name))).float() for name in self.classes}

    def check(self, model: KnownModel, widths: Mapping[str, int], classes: Sequence[str]) -> None:
        """Refuse words that were learned for another model or that lack a class. Reads a folder's weights once, for their hash.

        Args:
            model: that will be told the words.
            widths: text encoder -> values of a row of its table (`TextPipeline.text_widths`).
            classes: whose words are needed.

        Raises:
            ModelError: another model, other encoders, another width.
            DataError: a class without a word.
        """
        for name in classes:
            self.of(name)
        if set(widths) != set(self.encoders):
            what = f'are for the encoders {", ".join(self.encoders)}, {model.name!r} has {", ".join(widths)}'
            raise ModelError(f'The words of {str(self.file)!r} {what}.', _LEARN)
        for encoder, width in widths.items():
            found = next((shape[1] for name, shape in self._shapes.items() if name.startswith('<') == (encoder == _FIRST)), width)
            if found != width:
                raise ModelError(f'The words of {str(self.file)!r} have {found} values, those of the {encoder} of {model.name!r} {width}.', _LEARN)
        if not model.has_origin(self.card['model']):
            raise ModelError(
                f'The words of {str(self.file)!r} were learned for {self.card["model"].get("name")!r} of other content than {model.name!r}.',
                'Use the model that they were learned for, or learn words for this one: synthaug learn words.',
            )

    def check_erasures(self, erasures: Erasures | None, classes: Sequence[str]) -> None:
        """Refuse (ModelError) other erasures than those of the model that the words were learned on.

        Args:
            erasures: those in use.
            classes: whose words are used.
        """
        learned_on = self.card.get('erasures') or {}
        if erasures is None and learned_on:
            raise ModelError(f'The words of {str(self.file)!r} were learned on a model with their classes erased.', 'Set erasures to the same erasures.')
        if erasures is not None and not learned_on:
            what = f'The words of {str(self.file)!r} were learned on the model itself, without erasures.'
            raise ModelError(what, f'Learn them with model.erasures = {str(erasures.folder)!r}, or leave erasures out.')
        for name, sha256 in erasures.hashes(classes).items() if erasures is not None else ():
            if learned_on.get(name) != sha256:
                what = f'The word of {name!r} in {str(self.file)!r} was learned with another erasure of it than that in {str(erasures and erasures.folder)!r}.'
                raise ModelError(what, 'Use the erasures that the words were learned with.')

    def identity(self) -> dict[str, Any]:
        """What decides the pixels: plain JSON."""
        return {'sha256': file_hash(self.file)}


def _named(card: Any) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Classes, vectors and encoders that a card names; KeyError, TypeError or ValueError for a card that is none of ours."""
    classes, vectors, encoders, learned_on = card['classes'], card['vectors'], card['encoders'], card.get('erasures') or {}
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in (classes, encoders)):
        raise TypeError('classes or encoders are no list of names')
    if type(vectors) is not int or vectors < 1 or not all(isinstance(said, dict) for said in (card['model'], learned_on, card.get('initialised_from', {}))):
        raise ValueError('vectors, model, erasures or initialised_from are damaged')
    return tuple(classes), vectors, tuple(encoders)


def save_words(file: Path, rows: Mapping[str, Mapping[str, Tensor]], card: Mapping[str, Any]) -> None:
    """Write a file of words, whole or not at all. The same words and card give the same bytes.

    Args:
        file: .safetensors.
        rows: encoder -> word -> vectors (vectors, width).
        card: plain JSON with at least `classes`, `vectors`, `encoders`, `model` (see `TextPipeline.origin`) and `initialised_from`.
    """
    from safetensors.torch import save

    from synthaug_plugins.store.files import write_whole

    tensors = {tensor_name(encoder, word): t.detach().float().cpu().contiguous() for encoder, words in rows.items() for word, t in words.items()}
    write_whole(file, save(tensors, {_CARD: json.dumps(card, ensure_ascii=False)}))


def tensor_name(encoder: str, word: str) -> str:
    """Name of a word's vectors in the file."""
    return word if encoder == _FIRST else f'{encoder}/{word}'


def word_tokens(word: str, vectors: int) -> list[str]:
    """The tokens of a word, by diffusers' rule: '<cat>', '<cat>_1', '<cat>_2', ..."""
    return [word, *(f'{word}_{i}' for i in range(1, vectors))]


def add_tokens(tokenizer: Any, words: Mapping[str, int], of: str) -> None:
    """Add words to a tokenizer, each token matched as it stands: not split, whatever the tokenizer does to case and spaces.

    Args:
        words: word -> vectors.
        of: whose tokenizer it is, for the message.

    Raises:
        DataError: a token is there already.
    """
    from transformers import AddedToken

    taken = tokenizer.get_vocab()
    tokens = [token for word, vectors in words.items() for token in word_tokens(word, vectors)]
    if known := [token for token in tokens if token in taken]:
        raise DataError(f'The word {known[0]!r} is a token of {of} already.', 'Rename the class.')
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def make_room(encoder: Any, tokenizer: Any) -> None:
    """Give a CLIP text encoder's table a row for every token of its tokenizer: zeros, on top of the rows that are there, which stay as they are.

    Old configs say eos_token_id = 2, and transformers takes then the largest number in a prompt for the end of the text, which added tokens
    exceed: the summary of the prompt would be taken at a word in its middle. So the encoder is told the tokenizer's own end.
    """
    import torch

    table = encoder.get_input_embeddings()
    more = max(tokenizer.get_vocab().values()) + 1 - table.num_embeddings
    if more > 0:
        weight = torch.cat([table.weight.data, table.weight.data.new_zeros(more, table.embedding_dim)])
        encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight, freeze=True, padding_idx=table.padding_idx))
    text = getattr(encoder, 'text_model', encoder)
    if text.eos_token_id == 2:
        text.eos_token_id = tokenizer.eos_token_id


def set_rows(encoder: Any, tokenizer: Any, words: Mapping[str, Tensor]) -> None:
    """Write words into an encoder's table, in its dtype. After `add_tokens` and `make_room`.

    Args:
        words: word -> vectors (vectors, width).
    """
    table = encoder.get_input_embeddings().weight.data
    for word, rows in words.items():
        ids = tokenizer.convert_tokens_to_ids(word_tokens(word, len(rows)))
        table[ids] = rows.to(table)
