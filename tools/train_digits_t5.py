"""Train the embedded word-to-sentence model `digits_t5` from nothing: 'a three' in, 'a bold three leaning to the left' out.

    python tools/train_digits_t5.py      # about 3 minutes on one CPU core

What T5-base fine-tuned on CommonGen is for He et al. (ICLR 2023), at the size of a test. It sees descriptions of scikit-learn's digits 0
to 1199 (digits_captions.py), so it says bold, thin, wide, narrow or leaning as often as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch
from demo import CLASSES
from digits_assets import ASSETS, DATA, LICENCE, finish
from digits_captions import all_words, claims, describe, deviations, seen_digits, stands_out
from digits_check import describe_data
from fit import Fit, fit

from synthaug_plugins.prompts.enhance import Enhanced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIT = Fit(steps=1200, batch_size=128, learning_rate=3e-3, ema_half_life_images=1000)
TAIL = 0.3  # how often words stand at the end that are true of all digits
SIZE: dict[str, Any] = {'d_model': 64, 'd_kv': 16, 'd_ff': 128, 'num_layers': 2, 'num_heads': 4, 'dropout_rate': 0.0}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the captions and for the comma; any other word is unknown. Lower case; a text ends in '</s>'."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ['<pad>', '</s>', '<unk>', ',', *(f'▁{word}' for word in all_words())]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token='<unk>'))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing('$A </s>', special_tokens=[('</s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>')


class Once(torch.nn.Module):
    """A model whose checkpoints hold each tensor once: T5 uses one embedding in four places, which safetensors refuses."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(self.named_parameters())

    def load_state_dict(self, tensors: Mapping[str, Any], *args: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().load_state_dict(tensors, strict=False)


def train(folder: Path, work_dir: Path) -> dict[str, Any]:
    """Train and write a folder as `save_pretrained` does. Equal for equal options and versions."""
    from transformers import T5Config, T5ForConditionalGeneration

    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(FIT.seed)
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **SIZE))  # type: ignore[call-arg]
    images, labels = seen_digits()
    found = [stands_out(row) for row in deviations(images, labels)]

    def loss(batch_size: int) -> torch.Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        rows = rng.integers(len(images), size=batch_size)
        # In a quarter of the pairs the class is a numeral: folders may be called '3'.
        names = [str(labels[i]) if rng.random() < 0.25 else CLASSES[labels[i]] for i in rows]
        given = tokenizer([f'a {name}' for name in names], return_tensors='pt')
        wanted = tokenizer([describe(name, found[i], rng, TAIL) for name, i in zip(names, rows, strict=True)], return_tensors='pt', padding=True)
        told = wanted.input_ids.masked_fill(wanted.attention_mask == 0, -100)
        return model(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=told).loss

    trained = fit(Once(model), loss, FIT, work_dir)
    model.save_pretrained(folder)
    return trained


def check(folder: Path, sentences: int = 200) -> dict[str, Any]:
    """What language enhancement gets from the model with its own defaults: sentences per class, why drawn ones were left out, what they say."""
    with tempfile.TemporaryDirectory() as cache:
        source = Enhanced(str(folder), sentences=sentences, cache=cache, device='cpu')
        source.prepare(CLASSES)
        assert source.file is not None
        lines = [json.loads(line) for line in source.file.read_text(encoding='utf-8').splitlines()]
    counts = {line['class']: {k: v for k, v in line.items() if k != 'class'} for line in lines if 'kept' in line}
    texts = [(line['class'], line['sentence']) for line in lines if 'sentence' in line]
    said = Counter(value for _, text in texts for value in claims(text)[1].values())
    left_out: Counter[str] = Counter()
    for count in counts.values():
        left_out.update({k: v for k, v in count.items() if k not in ('kept', 'drawn')})
    drawn = sum(count['drawn'] for count in counts.values())
    return {
        'wanted_per_class': sentences,
        'kept_per_class': {label: count['kept'] for label, count in counts.items()},
        'drawn_per_class': {label: count['drawn'] for label, count in counts.items()},
        'left_out_share': {reason: round(count / drawn, 4) for reason, count in sorted(left_out.items())},
        'sentences_that_say': {value: round(count / len(texts), 3) for value, count in sorted(said.items())},
        'sentences_that_say_nothing_of_the_looks': round(sum(not claims(text)[1] for _, text in texts) / len(texts), 3),
        'examples': [text for i, (_, text) in enumerate(texts) if i % 200 == 5],
    }


def describe_model(card: dict[str, Any]) -> str:
    """card.md: the card for a reader."""
    found, training = card['check'], card['training']
    examples = '\n'.join(f'  - {text}' for text in found['examples'])
    return f"""# digits_t5

{card['what']}

{describe_data(card)}
- Sentences: descriptions made of what is measured on the pictures (ink, lean, width against the median of the class), worded by chance:
  `tools/digits_captions.py`.
- Training: {training['parameters']:,} parameters; {training['steps']:,} steps of {training['options']['batch_size']} pairs;
  {training['cpu_seconds'] / 60:.1f} CPU minutes on one core; loss {training['loss_curve'][0][1]:.2f} at first, {training['loss_curve'][-1][1]:.2f} at last.
- Language enhancement with its defaults, {found['wanted_per_class']} sentences wanted per class: at least {min(found['kept_per_class'].values())} found,
  in {min(found['drawn_per_class'].values())} to {max(found['drawn_per_class'].values())} draws.
  Left out: {', '.join(f'{reason} {100 * share:.1f} %' for reason, share in found['left_out_share'].items())}.
- Of the sentences kept, {100 * found['sentences_that_say_nothing_of_the_looks']:.0f} % say nothing of the looks; \
{', '.join(f'{value} {100 * share:.0f} %' for value, share in found['sentences_that_say'].items())}.
- Examples:
{examples}
- It knows the ten classes as words ('three') and numerals ('3'), and no other word: another class gets no sentences, and its plain name stands in.
- Licence of the weights: {card['licence']}. Made from nothing by `{training['script']}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ASSETS / 'digits_t5', help='the model folder')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits_t5'), help='checkpoint of a killed training')
    args = parser.parse_args()
    training = train(args.out, args.work_dir)
    card = {
        **{'name': 'digits_t5', 'what': 'T5 that writes a description of a handwritten digit around the name of its class.', 'licence': LICENCE},
        **{'data': DATA, 'training': {**training, 'script': 'tools/train_digits_t5.py'}, 'check': check(args.out)},
    }
    finish(args.out, card, describe_model(card))
    print(json.dumps(card['check'], indent=2))


if __name__ == '__main__':
    main()
