"""The models that the package carries: they load through the libraries' own code without a network, and do what their cards say."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from conftest import REPO
from synthaug_plugins.weights import embedded_folder, embedded_models, read_json

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
LARGEST = 5_000_000  # bytes


pytestmark = pytest.mark.usefixtures('no_network')


def tool(name: str) -> ModuleType:
    """A module of tools/, as its scripts import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / 'tools'))
        return importlib.import_module(name)


captions = tool('digits_captions')
CLIP = embedded_folder('embedded:digits_clip')


# --- every embedded model ---


@pytest.mark.parametrize('name', embedded_models())
def test_an_embedded_model_is_small_safe_and_has_a_card_that_says_what_it_saw(name: str) -> None:
    folder = embedded_folder(f'embedded:{name}')
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert {path.suffix for path in files} <= {'.json', '.txt', '.md', '.png', '.safetensors'}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)  # safetensors makes its files readable by their owner only
    card = read_json(folder / 'card.json')
    assert card['name'] == name
    assert card['licence'] == 'Apache-2.0'
    assert 'images 0 to 1199' in card['data']['split'] and '1200 to 1796 were never seen' in card['data']['split']
    assert (REPO / card['training']['script']).is_file()
    assert card['check']
    text = (folder / 'card.md').read_text(encoding='utf-8')
    assert 'It knows 1200 labels' in text and card['training']['script'] in text and card['licence'] in text
    assert '(sheet.png)' not in text or (folder / 'sheet.png').is_file()


# --- captions and tokenizer ---


def test_a_caption_claims_nothing_that_is_not_measured_on_its_image() -> None:
    images, labels = captions.seen_digits()
    rng = np.random.default_rng(0)
    named = claimed = 0
    for image, label in zip(images[:300], labels[:300].tolist(), strict=True):
        found = captions.attributes(image, label)
        for _ in range(4):
            name, said = captions.claims(captions.caption(image, label, rng))
            assert name in (label, None)
            assert said.items() <= found.items()
            named, claimed = named + (name is not None), claimed + bool(said)
    assert 0.88 < named / 1200 < 0.97
    assert claimed > 500


def test_a_digit_that_is_slanted_or_inked_more_is_called_so() -> None:
    images, labels = captions.seen_digits()
    image, label = images[labels == 3][5], 3
    slanted = np.stack([np.roll(row, shift) for row, shift in zip(image, (1, 1, 1, 0, 0, 0, -1, -1), strict=True)])
    before, after, mirrored = (captions.deviations(i[None], np.array([label]))[0] for i in (image, slanted, slanted[:, ::-1]))
    assert after[1] > before[1] + 1
    assert mirrored[1] < before[1]
    assert captions.deviations((image // 2)[None], np.array([label]))[0, 0] < before[0]


def test_every_word_of_a_caption_is_one_token_and_any_other_text_is_tokenised_too() -> None:
    import open_clip
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    assert tokenizer.model_max_length == 24
    assert all(len(tokenizer(word).input_ids) == 3 for word in captions.all_words())
    for text in ('Photo of a ZEBRA', 'café 漢字', '', '3', 'a b c d e f g h i j k l m n o p q r s t u v w x y z'):
        ids = tokenizer(text, truncation=True).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == max(ids) and len(ids) <= 24
        padded = open_clip.get_tokenizer(f'local-dir:{CLIP}')(text)[0].tolist()
        assert padded == ids + [tokenizer.pad_token_id] * (24 - len(ids))
    assert tokenizer.decode(tokenizer('a bold Three').input_ids, skip_special_tokens=True).strip() == 'a bold three'


def test_the_tokenizer_is_written_the_same_again(tmp_path: Path) -> None:
    captions.write_tokenizer(tmp_path)
    for name in ('vocab.json', 'merges.txt', 'tokenizer.json'):
        assert (tmp_path / name).read_bytes() == (CLIP / name).read_bytes()


# --- digits_clip ---


@pytest.fixture(scope='module')
def clip() -> tuple[torch.nn.Module, torch.Tensor, np.ndarray, np.ndarray]:
    """The embedded CLIP, its vectors of 597 digits that it never saw, those digits (n, 8, 8) and their labels."""
    trainer = tool('train_digits_clip')
    loaded, (images, labels) = trainer.Clip(CLIP), trainer.unseen_digits()
    assert len(images) == 597
    return loaded, loaded.images(images), images, labels


def test_clip_names_digits_that_it_never_saw_as_well_as_its_card_says(clip: tuple) -> None:
    loaded, vectors, _, labels = clip
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in loaded.model.visual.modules())
    assert 5 < loaded.model.logit_scale.exp().item() <= 100
    texts = loaded.texts([f'a photo of a {name}' for name in NAMES])
    p = (loaded.model.logit_scale.exp().detach() * vectors @ texts.T).softmax(1).numpy()
    accuracy = float((p.argmax(1) == labels).mean())
    found = read_json(CLIP / 'card.json')['check']
    assert accuracy > 0.93
    assert accuracy == pytest.approx(found['zero_shot_accuracy']['a photo of a {}'], abs=0.005)
    assert p.max(1).mean() == pytest.approx(accuracy, abs=0.04)  # as sure as it is right


def test_clip_tells_bold_digits_from_thin_ones(clip: tuple) -> None:
    loaded, vectors, images, labels = clip
    ink = captions.deviations(images, labels)[:, 0]
    right = []
    for label, name in enumerate(NAMES):
        rows = np.flatnonzero((labels == label) & (abs(ink) > captions.FAR))
        nearer = (vectors[rows] @ loaded.texts([f'a photo of a thin {name}', f'a photo of a bold {name}']).T).argmax(1).numpy()
        right.append((nearer == 1) == (ink[rows] > 0))
    assert np.concatenate(right).mean() > 0.9


def test_a_caption_that_is_true_of_another_image_is_no_negative() -> None:
    trainer = tool('train_digits_clip')
    texts = ['a photo of a three', 'a thin three', 'a bold digit leaning left', 'a photo']
    found = [{'weight': 'bold', 'lean': 'left'}, {'weight': 'thin'}, {'weight': 'bold', 'lean': 'left'}, {}]
    negative = trainer.told_apart(texts, np.array([3, 3, 4, 4]), found)
    assert negative.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    vectors = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    texts_too = vectors.flip(1)
    logits, terms = 10 * vectors @ texts_too.T, []
    for i in range(4):
        for row, against in ((logits[i], negative[i]), (logits[:, i], negative[:, i])):
            terms.append(torch.logsumexp(torch.stack([row[i], *row[against]]), 0) - row[i])
    loss = trainer.contrastive(vectors, texts_too, torch.tensor(10.0), negative)
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_a_training_of_equal_seed_ends_with_equal_weights(tmp_path: Path) -> None:
    trainer = tool('train_digits_clip')
    options = dataclasses.replace(trainer.FIT, steps=2, batch_size=16, checkpoint_steps=1)
    for name in ('one', 'two'):
        trainer.train(tmp_path / name, tmp_path / f'{name}-work', *captions.seen_digits(), options)
    files = [(tmp_path / name / 'open_clip_model.safetensors').read_bytes() for name in ('one', 'two')]
    assert files[0] == files[1]


# --- digits_t5 ---


def test_t5_writes_sentences_that_name_their_class_in_words_that_the_others_know() -> None:
    from synthaug_plugins.prompts.language_model import SentenceWriter
    from synthaug_plugins.prompts.sentences import Vocabulary, fault, words

    writer = SentenceWriter('embedded:digits_t5', None, None, 'cpu')
    vocabulary, known = Vocabulary({name: name for name in NAMES}), set(captions.all_words())
    for name in ('three', 'eight'):
        drawn = writer.write(name, 100, 0, temperature=1.0, top_p=1.0, top_k=50, max_new_tokens=20)
        good = [text for text in drawn if fault(text, name, vocabulary) is None]
        assert len(good) > 70
        assert len(set(good)) > 50
        assert {word for text in drawn for word in words(text)} <= known
        assert sum(bool(captions.claims(text)[1]) for text in good) > len(good) / 2
    drawn = writer.write('3', 50, 0, temperature=1.0, top_p=1.0, top_k=50, max_new_tokens=20)
    assert sum('3' in text.replace(',', '').split() for text in drawn) > 40
