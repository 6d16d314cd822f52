"""Train a small CLIP from nothing on image folders, in open_clip's format: a ResNet tower with BatchNorm and a text transformer.

    python tools/train_small_clip.py --data cifar10=runs/fewshot/data/cifar10/seen --data eurosat=runs/fewshot/data/eurosat/seen \\
        --check cifar10=runs/fewshot/data/cifar10/val --out runs/fewshot/clip --minutes 2
    python tools/train_small_clip.py --check eurosat=runs/fewshot/data/eurosat/train --out runs/fewshot/clip    # further figures, no training

A CLIP of one's own, for studies of CLIP classifiers where no real one can be had. Minutes on a GPU; a CPU can do a few steps.

Captions name the class in templates of `synthaug_plugins.prompts` and say nothing else: with few classes this is contrastive learning
with labels, and text knows class words only. The loss is CLIP's (Radford et al. 2021), but a caption of the same class is no negative.
Images are cropped, mirrored (satellite images also upside down) and changed a little in colour. Every class is shown in proportion to
the root of its number of images, so that a small data set among large ones is neither lost nor worn out.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from clip_training import contrastive, merges, write_tokenizer
from digits_assets import LICENCE, finish
from fit import Fit, fit
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from synthaug_plugins.curation.clip_model import ClipModel
from synthaug_plugins.device import choose_device, device_name
from synthaug_plugins.diffusion.warp import constant
from synthaug_plugins.learning.data import square
from synthaug_plugins.prompts.datasets import dataset_names, dataset_prompts
from synthaug_plugins.prompts.names import clean_label, names_from_labels
from synthaug_plugins.prompts.templates import ENSEMBLES, fill
from synthaug_plugins.real_images import RealImages, in_threads
from synthaug_plugins.weights import CARD

CONTEXT = 32
LARGEST_SCALE = 100.0  # as in CLIP: of the cosines
MOST_BYTES = 20_000_000
PREPROCESS: dict[str, Any] = {
    **{'mean': [0.48145466, 0.4578275, 0.40821073], 'std': [0.26862954, 0.26130258, 0.27577711]},  # CLIP's own
    **{'interpolation': 'bicubic', 'resize_mode': 'shortest'},
}
SIMPLE = ('a photo of a {}', 'a photo of a {}.', 'a photo of the {}.', 'a photo of {}', 'a picture of a {}', 'an image of a {}', '{}')
FROM_ABOVE = ('a satellite photo of {}', 'a satellite image of {}', 'an aerial photo of {}', 'a centered satellite photo of {}', '{} seen from above')
SATELLITES = frozenset({'eurosat'})  # data sets that have no up and down
FIT = Fit(steps=6000, batch_size=1024, learning_rate=2e-3, ema_half_life_images=20_000, warmup_steps=200, weight_decay=0.05, checkpoint_steps=500)


@dataclass(frozen=True)
class Source:
    """Images of one data set: its name in `synthaug_plugins.prompts` ('' where it has none there) and its folder of class folders."""

    dataset: str
    folder: RealImages

    @classmethod
    def read(cls, text: str) -> Source:
        """`NAME=FOLDER` or `FOLDER`."""
        dataset, equals, folder = text.partition('=')
        return cls(dataset, RealImages(folder)) if equals else cls('', RealImages(text))

    def spoken(self) -> dict[str, str]:
        """Class folder -> how prompts call it."""
        table = dataset_names(self.dataset) if self.dataset else names_from_labels(self.folder.classes)
        return {label: table[label].phrase for label in self.folder.classes}

    def templates(self) -> tuple[str, ...]:
        """For figures: the data set's own ensemble."""
        return ENSEMBLES[dataset_prompts(self.dataset).ensemble or 'sun'] if self.dataset else ENSEMBLES['sun']

    def captions(self) -> dict[str, tuple[str, ...]]:
        """Class folder -> all that may be said of its images. Names as prompts say them, and as the folder is called."""
        templates = (*SIMPLE, *(FROM_ABOVE if self.dataset in SATELLITES else ()), *self.templates())
        said = {}
        for label, name in self.spoken().items():
            words = ''.join(f' {c}' if c.isupper() else c for c in clean_label(label))  # SeaLake
            names = dict.fromkeys(' '.join(text.lower().split()) for text in (name, words))
            said[label] = tuple(dict.fromkeys(fill(template, name) for name in names for template in templates))
        return said

    def describe(self) -> dict[str, Any]:
        """For the card."""
        counts = {label: len(self.folder.ids(label)) for label in self.folder.classes}
        return {'name': self.dataset or self.folder.root.name, 'images_per_class': counts, 'sha256': self.folder.content_hash()}


@dataclass(frozen=True)
class Pairs:
    """Images and captions on the device, class by class.

    Attributes:
        images: (N, 3, H, W) uint8, all of class 0, then of class 1, ...
        counts, starts: (K,) images of each class, and where its first one is.
        turns: (K,) bool: whether a class's images may stand upside down.
        tokens: (K, most captions of a class, context) token ids; `said`: (K,) how many captions each class has.
        apart: (K, K) bool: the classes have no caption in common.
    """

    images: Tensor
    counts: Tensor
    starts: Tensor
    turns: Tensor
    tokens: Tensor
    said: Tensor
    apart: Tensor


def read_pairs(sources: Sequence[Source], tokenizer: Any, pixels: int, device: torch.device) -> Pairs:
    """Decode all images once, as open_clip's own preprocessing crops and resizes them."""
    images, counts, turns, captions = [], [], [], []
    for source in sources:
        folder, said = source.folder, source.captions()
        for label in folder.classes:
            images += in_threads(lambda i, folder=folder: square(folder.load(i), pixels, 3)[0], folder.ids(label), 8)
            counts.append(len(folder.ids(label)))
            turns.append(source.dataset in SATELLITES)
            captions.append(said[label])
    longest = max((text for texts in captions for text in texts), key=lambda text: len(tokenizer.tokenizer(text)['input_ids']))
    if len(tokenizer.tokenizer(longest)['input_ids']) > CONTEXT:
        raise SystemExit(f'The caption {longest!r} has more than {CONTEXT} tokens. Give the class a shorter name.')
    most = max(map(len, captions))
    tokens = torch.stack([tokenizer([texts[i % len(texts)] for i in range(most)]) for texts in captions])
    apart = [[not set(a) & set(b) for b in captions] for a in captions]
    count = torch.tensor(counts)
    parts = (torch.from_numpy(np.stack(images)), count, count.cumsum(0) - count, torch.tensor(turns), tokens, torch.tensor([*map(len, captions)]))
    return Pairs(*(part.to(device) for part in (*parts, torch.tensor(apart))))


def augment(x: Tensor, turns: Tensor) -> Tensor:
    """A random part (half of the area at least) at full size, mirrored or not, with a little other light and colour.

    Args:
        x: (B, 3, H, W) in 0..1.
        turns: (B,) bool, whether an image may be turned upside down.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), device=x.device)

    area, shape = draw(0.5, 1), draw(math.log(0.8), math.log(1.25)).exp()
    wide, tall = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    left_right = draw(-1, 1).sign()
    up_down = torch.where(turns, draw(-1, 1).sign(), 1.0)
    zero = torch.zeros_like(wide)
    rows = [torch.stack([wide * left_right, zero, (1 - wide) * draw(-1, 1)], 1), torch.stack([zero, tall * up_down, (1 - tall) * draw(-1, 1)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode='bicubic', padding_mode='reflection', align_corners=False).clamp(0, 1)
    bright, contrast, colour = (draw(0.75, 1.25)[:, None, None, None] for _ in range(3))
    grey = x.mean(1, keepdim=True)
    x = (grey + colour * (x - grey)) * bright
    middle = x.mean((1, 2, 3), keepdim=True)
    return (middle + contrast * (x - middle)).clamp(0, 1)


def batch_loss(model: nn.Module, pairs: Pairs, batch_size: int) -> Tensor:
    """Draw a batch of pairs and return its loss."""
    device = pairs.images.device
    shares = pairs.counts.sqrt() / pairs.counts.sqrt().sum()
    # As `torch.multinomial` does it, which would wait for the device.
    labels = torch.searchsorted(shares.cumsum(0), torch.rand(batch_size, device=device)).clamp(max=len(shares) - 1)

    def within(count: Tensor) -> Tensor:
        return (torch.rand(batch_size, device=device) * count).long().minimum(count - 1)

    x = pairs.images[pairs.starts[labels] + within(pairs.counts[labels])].float() / 255
    tokens = pairs.tokens[labels, within(pairs.said[labels])]
    mean, std = (constant((tuple(PREPROCESS[key]),), x.dtype, device).view(3, 1, 1) for key in ('mean', 'std'))
    x = ((augment(x, pairs.turns[labels]) - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.autocast('cuda', torch.bfloat16) if device.type == 'cuda' else nullcontext():
        image, text, scale = model(x, tokens)
    return contrastive(image.float(), text.float(), scale.float().clamp(max=LARGEST_SCALE), pairs.apart[labels][:, labels])


def model_config(layers: Sequence[int], width: int, pixels: int, vocabulary: int, name: str) -> dict[str, Any]:
    """open_clip's `model_cfg`; a list of layers makes its ResNet with BatchNorm."""
    return {
        'embed_dim': 256,
        'vision_cfg': {'image_size': pixels, 'layers': list(layers), 'width': width},
        'text_cfg': {'context_length': CONTEXT, 'vocab_size': vocabulary, 'hf_tokenizer_name': name, 'width': 128, 'heads': 4, 'layers': 3},
    }


def steps_within(seconds: float, model: nn.Module, pairs: Pairs, options: Fit) -> int:
    """How many steps the time allows, from the speed of a few on a copy of the model."""
    begun = 0.0
    for steps in (20, 40):  # the first ones choose kernels and fill caches
        with TemporaryDirectory() as work_dir:
            trial, begun = copy.deepcopy(model), time.perf_counter()
            fit(trial, partial(batch_loss, trial, pairs), replace(options, steps=steps, checkpoint_steps=steps), Path(work_dir))
    each = (time.perf_counter() - begun) / 40
    print(f'{each * 1000:.1f} ms per step: {max(1, int(seconds / each)):,} steps in {seconds:.0f} s', flush=True)
    return max(1, int(seconds / each))


def train(
    folder: Path, sources: Sequence[Source], options: Fit, work_dir: Path, device: torch.device, layers: Sequence[int], width: int, pixels: int, minutes: float
) -> dict[str, Any]:
    """Write config, tokenizer and weights into `folder`; returns what the card says of it. Equal options give equal weights on a CPU.

    Args:
        minutes: above 0: takes the place of `options.steps`; loading is not counted.
    """
    import open_clip

    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    words = sorted({word for source in sources for texts in source.captions().values() for text in texts for word in _words(text)})
    vocabulary = len(write_tokenizer(folder, merges(words), CONTEXT))
    config = {'model_cfg': model_config(layers, width, pixels, vocabulary, folder.name), 'preprocess_cfg': PREPROCESS}
    (folder / 'open_clip_config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    torch.manual_seed(options.seed)
    model = open_clip.create_model(f'local-dir:{folder}', load_weights=False)
    model = model.to(device, memory_format=torch.channels_last).train()
    pairs = read_pairs(sources, open_clip.get_tokenizer(f'local-dir:{folder}'), pixels, device)
    print(f'{len(pairs.images):,} images of {len(pairs.counts)} classes read after {time.perf_counter() - begun:.0f} s', flush=True)
    if minutes:
        steps = steps_within(60 * minutes, model, pairs, options)
        options = replace(options, steps=steps, checkpoint_steps=max(1, steps // 12))
    begun = time.perf_counter()
    trained = fit(model, partial(batch_loss, model, pairs), options, work_dir)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
    tensors = {name: value.detach().half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, folder / 'open_clip_model.safetensors')
    return {
        **trained,
        'seconds': round(time.perf_counter() - begun),
        'device': device_name(device),
        'visual_parameters': sum(p.numel() for p in model.visual.parameters()),
    }


def _words(text: str) -> list[str]:
    """The words of a caption as CLIP's tokenizer parts them: runs of letters, digits one by one, runs of other signs."""
    import regex

    return regex.findall(r'\p{L}+|\p{N}|[^\s\p{L}\p{N}]+', text.lower())


def check(folder: Path, source: Source, device: torch.device) -> dict[str, Any]:
    """Zero-shot figures on images that were not seen, with the ensemble of the data set's prompts."""
    clip, real = ClipModel(str(folder)), source.folder
    clip.load(device)
    spoken = source.spoken()
    texts = clip.class_embeddings([[fill(template, spoken[label]) for template in source.templates()] for label in real.classes])
    found = {}
    shares = []
    for place, label in enumerate(real.classes):
        p = (clip.logit_scale * clip.encode_images([*in_threads(real.load, real.ids(label), 8)]) @ texts.T).softmax(1)
        found[label] = round(float((p.argmax(1) == place).float().mean()), 4)
        shares.append(p.max(1).values)
    counts = [len(real.ids(label)) for label in real.classes]
    return {
        **source.describe(),
        'zero_shot_accuracy': round(float(np.average([*found.values()], weights=counts)), 4),
        'accuracy_per_class': found,
        'mean_largest_p': round(float(torch.cat(shares).mean()), 4),
    }


def describe_model(card: dict[str, Any]) -> str:
    """card.md: the card for a reader."""
    training = card['training']

    def listed(sources: Sequence[dict[str, Any]]) -> str:
        return ', '.join(f'{s["name"]} ({sum(s["images_per_class"].values()):,} images of {len(s["images_per_class"])} classes)' for s in sources)

    figures = ''.join(
        f'\n- {part} of {found["name"]}, {sum(found["images_per_class"].values()):,} images: {100 * found["zero_shot_accuracy"]:.1f} %, worst class '
        f'{100 * min(found["accuracy_per_class"].values()):.1f} %; mean largest p {found["mean_largest_p"]:.3f}.'
        for part, found in card['check'].items()
    )
    return f"""# {card['name']}

{card['what']}

- Seen: {listed(card['data'])}, nothing else. It is a stand-in for a model trained on the web, for studies that must run offline: within the
  data sets it has seen its labels are many more than a few-shot study's, outside of them it knows no words.
- Captions: the class's name in the templates of `synthaug_plugins.prompts`. A word of no caption becomes letters, whose vectors were never
  trained.
- Training: {training['parameters']:,} parameters ({training['visual_parameters']:,} in the image tower); {training['steps']:,} steps of
  {training['options']['batch_size']} pairs in {training['seconds']} s on {training['device']}; loss {training['loss_curve'][0][1]:.2f} at first,
  {training['loss_curve'][-1][1]:.2f} at last. CLIP's symmetric cross entropy, in which captions of the same class are no negatives.
- Made from nothing by `{training['command']}`.
- Licence of the weights: {card['licence']}.

Zero-shot accuracy on images that were not seen, with each data set's own ensemble of prompts:
{figures}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', action='append', default=[], metavar='[NAME=]FOLDER', help='images to learn; NAME: of a data set of synthaug_plugins.prompts')
    parser.add_argument('--check', action='append', default=[], metavar='[NAME=]FOLDER', help='images to measure zero-shot accuracy on')
    parser.add_argument('--out', type=Path, required=True, help='the model folder; without --data one that is there')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/small_clip'), help='checkpoint of a killed training')
    parser.add_argument('--device', default='auto')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--steps', type=int, default=FIT.steps)
    length.add_argument('--minutes', type=float, default=0.0, help='train so long, instead of --steps')
    parser.add_argument('--batch-size', type=int, default=FIT.batch_size)
    parser.add_argument('--learning-rate', type=float, default=FIT.learning_rate)
    parser.add_argument('--layers', type=int, nargs=4, default=[2, 2, 2, 2], help='blocks of the image tower')
    parser.add_argument('--width', type=int, default=32, help='channels of its first level')
    parser.add_argument('--pixels', type=int, default=64)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    device = choose_device(args.device)
    torch.backends.cudnn.benchmark = True  # all batches are of one size
    if args.data:
        sources = [Source.read(text) for text in args.data]
        options = replace(FIT, steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed)
        options = replace(options, warmup_steps=max(1, min(FIT.warmup_steps, args.steps // 10)) if not args.minutes else FIT.warmup_steps)
        training = train(args.out, sources, options, args.work_dir, device, args.layers, args.width, args.pixels, args.minutes)
        shape = f'--layers {" ".join(map(str, args.layers))} --width {args.width} --pixels {args.pixels}'
        fitted = f'--steps {training["steps"]} --batch-size {args.batch_size} --learning-rate {args.learning_rate:g} --seed {args.seed}'
        seen = ' '.join(f'--data {source.dataset}={source.folder.root.name}'.replace(' =', ' ') for source in sources)
        card = {
            **{'name': args.out.name, 'what': 'A small CLIP of a few classes of images and their names, for open_clip.', 'licence': LICENCE},
            **{'data': [source.describe() for source in sources], 'check': {}},
            'training': {**training, 'script': 'tools/train_small_clip.py', 'command': f'tools/train_small_clip.py {seen} {fitted} {shape}'},
        }
    else:
        card = json.loads((args.out / CARD).read_text(encoding='utf-8'))
    finish(args.out, card, describe_model(card), MOST_BYTES)  # first of all: what was trained is not lost to a wrong --check
    for text in args.check:
        source = Source.read(text)
        card['check'][source.folder.root.name] = found = check(args.out, source, device)
        print(f'{text}: zero-shot accuracy {100 * found["zero_shot_accuracy"]:.2f} %', flush=True)
        finish(args.out, card, describe_model(card), MOST_BYTES)


if __name__ == '__main__':
    main()
