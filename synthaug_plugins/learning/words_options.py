"""How to learn class words: the options, the two published settings, and what of them is refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.learning.checks import check_number, check_precision, check_seed, check_whole
from synthaug_plugins.models.fit import check_fit
from synthaug_plugins.prompts.templates import ENSEMBLES


@dataclass(frozen=True)
class WordTraining:
    """How the word of each class is learned (textual inversion, Gal et al. 2022, as DA-Fusion uses it, Trabucco et al., ICLR 2024).

    The defaults are the later setting of DA-Fusion's author, `PRESETS['iclr2024']`.

    Attributes:
        vectors: per word: so many tokens of a prompt it takes.
        initialise_from: text whose tokens the vectors start from, such as 'the': then nothing of the class's name is in them. None: the class's
            name. With m tokens for n vectors: vector k starts from token k mod m where m <= n; else the tokens are dealt to the vectors in order, as
            evenly as can be, and each starts from the mean of its own.
        templates: prompts to learn with, one is drawn for each image; see `prompts.templates.ENSEMBLES`.
        steps: per class.
        batch_size: images per step.
        accumulation: parts in which a step's batch goes through the model, to save memory; every image has the same draws in any number of parts.
        learning_rate: of AdamW (betas 0.9 and 0.999), constant. The published code multiplies what it is given by the batch size; this is the product.
        weight_decay: decoupled.
        hflip: share of mirrored images; 0 where mirrored is another class.
        fit: how an image gets the model's shape: 'squash' (as published), 'crop' or 'pad', see `models.fit.place`.
        seed: decides every draw. What a class's word becomes does not depend on the other classes.
        precision: in which the networks run: 'fp32', 'bf16', 'fp16', or 'auto': bf16 on GPUs that have it, else fp32. The words are float32.
        checkpoint_steps: steps between checkpoints; one more is written at the end of each class.
    """

    vectors: int = 4
    initialise_from: str | None = None
    templates: tuple[str, ...] = ENSEMBLES['textual_inversion']
    steps: int = 2000
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    hflip: float = 0.5
    fit: str = 'squash'
    seed: int = 0
    precision: str = 'auto'
    checkpoint_steps: int = 250


PRESETS: dict[str, dict[str, Any]] = {
    'iclr2024': {'vectors': 4, 'initialise_from': None, 'steps': 2000, 'batch_size': 8, 'learning_rate': 4e-3},
    'preprint': {'vectors': 1, 'initialise_from': 'the', 'steps': 1000, 'batch_size': 4, 'learning_rate': 2e-3},
}
"""Published settings: `iclr2024` is what DA-Fusion's author names for the ICLR version (issue 24 of his repository), `preprint` that of the
first version and of its shipped scripts. The latter starts from a word that says nothing of the class, a defence against leakage."""

FREE = {'accumulation', 'checkpoint_steps'}
"""Options that may differ between the run that wrote a checkpoint and the one that continues it."""


def check_word_training(options: WordTraining) -> None:
    """Refuse options that are out of range, before any data is read.

    Raises:
        RecipeError: the key is named.
    """
    for name in ('vectors', 'steps', 'batch_size', 'accumulation', 'checkpoint_steps'):
        check_whole(name, getattr(options, name))
    if options.batch_size % options.accumulation:
        raise RecipeError(f'batch_size = {options.batch_size} does not divide into accumulation = {options.accumulation} parts.', 'Choose a divisor.')
    check_number('learning_rate', options.learning_rate, 'Use a number above 0: with 0 nothing is learned.', above=True)
    check_number('weight_decay', options.weight_decay, 'Use 0 or more.')
    check_number('hflip', options.hflip, 'It is a share of the images, from 0 to 1.', high=1)
    check_seed(options.seed)
    check_fit(options.fit)
    check_precision(options.precision)
    text = options.initialise_from
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise RecipeError(f'initialise_from = {text!r} is no text.', "Write a word such as 'the', or None for the class's name.")


def decisive_options(options: WordTraining) -> dict[str, Any]:
    """The options that decide the words."""
    return {key: value for key, value in asdict(options).items() if key not in FREE}
