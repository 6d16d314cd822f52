"""Learned class words: their file, tokens, table rows and prompts, on pipelines of one and two text encoders."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.generators.real_guidance import RealGuidance
from synthaug_plugins.generators.text_to_image import TextToImage
from synthaug_plugins.models.text_model import TextModel
from synthaug_plugins.models.words import Words, save_words, word_of, word_tokens
from synthaug_plugins.prompts.learned import LearnedWords
from synthaug_plugins.store.plan import Part, Request

CPU = torch.device('cpu')
CLASSES = ('cat', 'a', 'a_1', 'Café au lait')
VECTORS = 3


@pytest.fixture(scope='module')
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp('sd'))


@pytest.fixture(scope='module')
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sdxl(tmp_path_factory.mktemp('sdxl'))


def write_words(file: Path, pipeline: Path, classes: tuple[str, ...] = CLASSES, vectors: int = VECTORS, **changes: Any) -> Path:
    """A file of random words for a pipeline."""
    model = TextModel(str(pipeline))
    g = torch.Generator().manual_seed(0)
    widths = model.text_widths()
    rows = {e: {word_of(c): torch.randn(vectors, width, generator=g) for c in classes} for e, width in widths.items()}
    card = {'classes': classes, 'vectors': vectors, 'encoders': list(widths), 'model': model.origin(), 'initialised_from': {'word': 'the'}}
    save_words(file, rows, card | changes)
    return file


@pytest.fixture(scope='module')
def words(sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp('words') / 'words.safetensors', sd)


def request(prompt: str, seed: int = 3) -> Request:
    return Request('r', 0, 'cat', seed, None, prompt, {'guidance_scale': 3.0})


def test_a_class_has_one_placeholder_and_two_classes_never_share_one() -> None:
    assert [word_of(c) for c in CLASSES] == ['<cat>', '<a>', '<a_1>', '<café_au_lait>']
    assert word_of('Cafe\u0301') == word_of('CAFÉ') == '<café>'
    source = LearnedWords()
    with pytest.raises(DataError, match=r"'St\. Bernard' and 'st_bernard' would have the same word '<st_bernard>'"):
        source.prepare(['St. Bernard', 'cat', 'st_bernard'])
    source.prepare(CLASSES)
    assert [source.prompt(c, 0, 0) for c in CLASSES] == ['a photo of a <cat>', 'a photo of a <a>', 'a photo of a <a_1>', 'a photo of a <café_au_lait>']


def test_a_word_is_one_token_per_vector_whatever_stands_beside_it_and_whatever_other_words_begin_like_it(sd: Path, words: Path) -> None:
    model = TextModel(str(sd), words=words)
    tokenizer = model.tokens.tokenizers['tokenizer']
    a, a_1 = word_tokens('<a>', VECTORS), word_tokens('<a_1>', VECTORS)
    for prompt, wanted in {
        'a photo of a <a>': ['a</w>', 'photo</w>', 'of</w>', 'a</w>', *a],
        'a photo of a<a_1>s': ['a</w>', 'photo</w>', 'of</w>', 'a</w>', *a_1, 's</w>'],
        'the <a_1> on <a>, <a>': ['the</w>', *a_1, 'on</w>', *a, '<|endoftext|>', *a],
        '<CAFÉ_AU_LAIT>'.lower(): word_tokens('<café_au_lait>', VECTORS),
    }.items():
        assert tokenizer.tokenize(model.tokens.expand(prompt)) == wanted


def test_the_token_limit_counts_every_vector_of_a_word(sd: Path, words: Path) -> None:
    model = TextModel(str(sd), words=words)  # 20 tokens, two of them start and end
    assert model.fit_prompt('a photo of ' + ' '.join(['<cat>'] * 5)) == ('a photo of ' + ' '.join(['<cat>'] * 5), [])
    assert model.fit_prompt('a photo of ' + ' '.join(['<cat>'] * 6)) == ('a photo of ' + ' '.join(['<cat>'] * 5), ['<cat>'])


@pytest.mark.parametrize('family', ['sd', 'sdxl'])
def test_words_append_rows_and_leave_the_others_bit_equal(family: str, sd: Path, sdxl: Path, tmp_path: Path) -> None:
    pipeline = {'sd': sd, 'sdxl': sdxl}[family]
    file = write_words(tmp_path / 'w.safetensors', pipeline)
    model, plain = TextModel(str(pipeline), words=file), TextModel(str(pipeline))
    model.load(CPU, torch.float32)
    plain.load(CPU, torch.float32)
    stored = Words(file)
    assert set(stored.encoders) == set(model._text_encoders) == {'sd': {'text_encoder'}, 'sdxl': {'text_encoder', 'text_encoder_2'}}[family]
    for e, encoder in model._text_encoders.items():
        before, after = plain._text_encoders[e].get_input_embeddings().weight, encoder.get_input_embeddings().weight
        assert torch.equal(after[: len(before)], before)
        tokenizer = model.tokens.tokenizers[e.replace('text_encoder', 'tokenizer')]
        for word, rows in stored.rows(e).items():
            assert torch.equal(after[tokenizer.convert_tokens_to_ids(word_tokens(word, VECTORS))], rows)
        assert len(after) == len(before) + VECTORS * len(CLASSES)
    prompts = ['a photo of a dog', '']
    for a, b in zip(_leaves(model.conditions(prompts)), _leaves(plain.conditions(prompts)), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(_leaves(model.conditions(['a <cat>']))[0], _leaves(model.conditions(['a <a>']))[0])


def _leaves(conditions: Any) -> list[torch.Tensor]:
    return [leaf for value in conditions.values() for leaf in _leaves(value)] if isinstance(conditions, dict) else [conditions]


def test_stock_diffusers_makes_the_same_image_of_our_file(sd: Path, words: Path) -> None:
    generator = TextToImage(str(sd), words=str(words), num_steps=5, guidance_scale=3.0)
    generator.setup(CPU)
    made = generator.generate([request('a photo of a <cat>')])
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd)
    pipe.set_progress_bar_config(disable=True)
    for word, rows in load_file(words).items():
        pipe.load_textual_inversion({word: rows})
    from synthaug_plugins.diffusion import SampleNoise

    latents = SampleNoise([3], (4, 8, 8), CPU).latents()
    stock = pipe('a photo of a <cat>', num_inference_steps=5, guidance_scale=3.0, latents=latents.float(), output_type='np').images
    assert np.abs(np.asarray(made, dtype=np.float64) - stock * 255).max() <= 1
    other = generator.generate([request('a photo of a <a>')])
    assert np.abs(np.asarray(made, dtype=int) - np.asarray(other, dtype=int)).max() > 3


def test_the_summary_of_a_prompt_is_taken_at_its_end_although_old_configs_name_the_end_wrongly(sdxl: Path, tmp_path: Path) -> None:
    import shutil

    old = shutil.copytree(sdxl, tmp_path / 'old')
    config = json.loads((old / 'text_encoder_2' / 'config.json').read_text())
    (old / 'text_encoder_2' / 'config.json').write_text(json.dumps({**config, 'eos_token_id': 2}))
    found = []
    for pipeline in (sdxl, old):
        model = TextModel(str(pipeline), words=write_words(tmp_path / 'w.safetensors', pipeline))
        model.load(CPU, torch.float32)
        found.append([model.conditions([p])['added_cond_kwargs']['text_embeds'] for p in ('a <cat> on the table', 'a <cat> on the dog')])
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[1][0], found[1][1])


def test_a_word_that_the_file_lacks_is_refused_before_weights_load(sd: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextModel, 'load', lambda *a: pytest.fail('weights were loaded'))
    said: list[str] = []

    def generator(**options: Any) -> TextToImage:
        return TextToImage(str(sd), num_steps=2, **options)

    with pytest.raises(DataError, match=r"The class 'dog' has no word in .*words\.safetensors"):
        generator(words=str(words)).check(['cat', 'dog'])
    with pytest.raises(RecipeError, match=r"holds '<dog>', which is no learned word of .*words\.safetensors"):
        generator(words=str(words), prompts={'type': 'LearnedWords'}).prepare(['dog'], said.append)
    with pytest.raises(RecipeError, match=r"holds '<dog>', which is no learned word: the model was given none"):
        generator(prompts={'type': 'LearnedWords'}).prepare(['dog'], said.append)
    with pytest.raises(RecipeError, match="holds '<cat>_1', which is no learned word"):
        generator(words=str(words), prompts={'type': 'LearnedWords', 'templates': 'a {}_1'}).prepare(['cat'], said.append)
    with pytest.raises(RecipeError, match="holds '<Cat>'"):
        generator(words=str(words), negative_prompt='a <Cat>').check(['cat'])
    with pytest.raises(RecipeError, match=r"has no effect on the class 'cat': no prompt of it says '<cat>', 'a photo of a cat' for one"):
        generator(words=str(words), prompts={'type': 'Basic'}).prepare(['cat'], said.append)
    told = generator(words=str(words))
    told.check(['cat'])
    told.prepare(['cat'], said.append)
    assert next(told.requests(Part(0, 0, 'cat', 1, 2), 0)).prompt == 'a photo of a <cat>'


def test_a_class_that_is_told_by_its_name_or_by_the_word_of_another_is_refused(sd: Path, tmp_path: Path) -> None:
    words, file = tiny.learned_words(tmp_path / 'w.safetensors', sd, ['cat', 'dog']), tmp_path / 'prompts.json'
    for prompts, refused in ((['a dog'], True), (['a <cat>'], True), (['a <cat> and a <dog>', 'a dog'], False)):
        file.write_text(json.dumps({'cat': ['a <cat>'], 'dog': prompts}))
        generator = TextToImage(str(sd), num_steps=2, words=words, prompts={'type': 'FromFile', 'file': str(file)})
        with pytest.raises(RecipeError, match=r"no effect on the class 'dog': no prompt of it says '<dog>'") if refused else nullcontext():
            generator.prepare(['cat', 'dog'], print)


def test_conditions_refuse_a_missing_word_too(sd: Path, words: Path) -> None:
    model = TextModel(str(sd), words=words)
    model.load(CPU, torch.float32)
    with pytest.raises(RecipeError, match="'<dog>', which is no learned word"):
        model.conditions(['a photo of a <dog>'])


def test_words_of_another_model_or_for_another_kind_of_model_are_refused(sd: Path, sdxl: Path, words: Path, tmp_path: Path) -> None:
    other = tiny.sd(tmp_path / 'other', layers_per_block=2)
    with pytest.raises(ModelError, match='of other content than'):
        TextToImage(str(other), words=str(words)).check(['cat'])
    with pytest.raises(ModelError, match='of other content than'):
        TextModel(str(other), words=words).load(CPU, torch.float32)
    with pytest.raises(ModelError, match=r'are for the encoders text_encoder, .* has text_encoder, text_encoder_2'):
        TextToImage(str(sdxl), words=str(words)).check(['cat'])
    with pytest.raises(ModelError, match=r'have 16 values, those of the text_encoder .* 64'):
        TextToImage('embedded:digits_sd', words=str(words)).check(['cat'])
    with pytest.raises(RecipeError, match='is an option of text-to-image pipelines'):
        RealGuidance('embedded:digits_edm', sigma=1.0, words=str(words))


@pytest.mark.parametrize('family', ['sd3', 'flux', 'pixart', 'sana'])
def test_families_that_take_no_words_are_refused_with_the_reason(family: str, words: Path, tmp_path: Path) -> None:
    pipeline = getattr(tiny, family)(tmp_path)
    with pytest.raises(ModelError, match=f'is a {family} pipeline: it reads prompts by a .*, for which no published method learns words'):
        TextToImage(str(pipeline), words=str(words))


def test_a_word_that_is_a_token_already_is_refused_by_name(sd: Path, tmp_path: Path) -> None:
    file = write_words(tmp_path / 'w.safetensors', sd, ('|endoftext|',))  # the name alone would not be a placeholder
    assert Words(file).of('|endoftext|') == '<_endoftext_>'
    model = TextModel(str(sd))
    model.tokens.add({'<cat>': 2})
    with pytest.raises(DataError, match="The word '<cat>_1' is a token of the tokenizer of"):
        model.tokens.add({'<cat>_1': 1})


def test_files_that_hold_no_words_are_refused(tmp_path: Path, sd: Path) -> None:
    from safetensors.torch import save_file

    save_file({'<cat>': torch.zeros(1, 16)}, tmp_path / 'foreign.safetensors')
    (tmp_path / 'text.safetensors').write_text('no')
    for name, match in (
        ('missing', 'there is no such file'),
        ('foreign.safetensors', 'holds no learned words'),
        ('text.safetensors', 'holds no learned words'),
    ):
        with pytest.raises(ModelError, match=match):
            TextModel(str(sd), words=tmp_path / name)
    file = write_words(tmp_path / 'w.safetensors', sd, classes=('cat', 'dog'), vectors=2)
    card = json.dumps({**Words(file).card, 'classes': ['cat']})
    save_file(load_file(file), tmp_path / 'torn.safetensors', {'card': card})
    with pytest.raises(ModelError, match='its tensors are not those that its card names'):
        Words(tmp_path / 'torn.safetensors')


def test_words_decide_the_identity_and_variants_of_real_images_follow_them(sd: Path, words: Path, tmp_path: Path) -> None:
    other = write_words(tmp_path / 'w.safetensors', sd, vectors=2)
    identities = [TextModel(str(sd), words=w).identity() for w in (words, other, None)]
    assert identities[0]['words'] != identities[1]['words']
    assert 'words' not in identities[2]
    (tmp_path / 'data' / 'cat').mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / 'data' / 'cat' / '0.png')
    from synthaug_plugins.real_images import RealImages

    made = []
    for file in (words, other):
        generator = RealGuidance(str(sd), t0=1.0, words=str(file), sampler={'num_steps': 3})
        generator.setup(CPU, RealImages(tmp_path / 'data'))
        generator.check(['cat'])
        generator.prepare(['cat'], print)
        made.append(np.asarray(generator.generate([next(generator.requests(Part(0, 0, 'cat', 1, 2, 0, ('cat/0.png',)), 0))])))
    assert not np.array_equal(*made)
