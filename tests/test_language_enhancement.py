"""Language enhancement: what a model may write, and the file that keeps it. The model is a small T5 trained here on sentences around given words."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.prompts import enhance
from synthaug_plugins.prompts.enhance import Enhanced
from synthaug_plugins.prompts.language_model import SentenceWriter, model_identity
from synthaug_plugins.prompts.sentences import Vocabulary, clean_sentence, fault, sameness
from synthaug_plugins.prompts.sources import FromFile
from synthaug_plugins.weights import embedded_folder

ANIMALS = ('cat', 'dog', 'fox')
PLACES = ('mat', 'road', 'hill', 'boat', 'farm', 'snow')
VERBS = ('sits', 'runs', 'sleeps', 'jumps')


def save_tokenizer(folder: Path) -> dict[str, int]:
    """A word-level tokenizer of the test's few words, as transformers saves it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ['<pad>', '</s>', '<unk>', 'a', 'the', 'on', 'in', 'and', 'two', 'photo', *ANIMALS, *(f'{a}s' for a in ANIMALS), *PLACES, *VERBS]
    vocabulary = {w: i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing('$A </s>', special_tokens=[('</s>', 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>').save_pretrained(folder)
    return vocabulary


pytestmark = pytest.mark.usefixtures('no_network')


@pytest.fixture(scope='module')
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a T5 that has learned to write sentences with the word it is given: most name that animal alone, one in six another too."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp('writer')
    vocabulary = save_tokenizer(folder)
    config = T5Config(
        **{'vocab_size': len(vocabulary), 'd_model': 48, 'd_kv': 12, 'd_ff': 96, 'num_layers': 1, 'num_heads': 4, 'dropout_rate': 0.0},
        **{'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0},
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pairs = []
    for a, v, p in itertools.product(ANIMALS, VERBS, PLACES):
        other = ANIMALS[(ANIMALS.index(a) + 1) % 3]
        for text in (
            f'a {a} {v} on the {p}',
            f'the {a} {v} in a {p}',
            f'two {a}s on the {p}',
            f'a {a} {v} in the {p}',
            f'the {p} and a {a}',
            f'a {a} and a {other}',
        ):
            pairs.append(([vocabulary['a'], vocabulary[a], 1], [vocabulary[w] for w in text.split()] + [1]))
    longest = max(len(target) for _, target in pairs)
    given = torch.tensor([x for x, _ in pairs])
    wanted = torch.tensor([y + [-100] * (longest - len(y)) for _, y in pairs])
    for _ in range(60):
        rows = torch.randint(len(pairs), (64,))
        optimizer.zero_grad()
        model(input_ids=given[rows], labels=wanted[rows]).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def enhanced(writer: Path, cache: Path, sentences: int = 20, **options: object) -> Enhanced:
    return Enhanced(model=str(writer), cache=str(cache), sentences=sentences, device='cpu', **options)


def prepared(source: Enhanced, classes: Sequence[str] = ANIMALS) -> Enhanced:
    source.prepare(classes)
    return source


# --- which sentences stand ---

VOCABULARY = Vocabulary({'cat': 'cat', 'sea lion': 'sea lion', 'lion': 'lion', 'mouse': 'mouse', 'StBernard': 'St. Bernard', 'leaf': 'leaf', 'mat': 'door mat'})


@pytest.mark.parametrize(
    ('sentence', 'label', 'reason'),
    [
        ('A cat asleep on a sofa', 'cat', None),
        ('Two CATS, asleep', 'cat', None),
        ("the cat's tail", 'cat', None),
        ('a category of things', 'cat', 'without the class name'),
        ('a concatenation', 'cat', 'without the class name'),
        ('a dog asleep', 'cat', 'without the class name'),
        ('a cat and a mouse', 'cat', 'with another class'),
        ('a cat and three mice', 'cat', 'with another class'),
        ('mice in the barn', 'mouse', None),
        ('leaves in autumn', 'leaf', None),
        ('a sea lion on a rock', 'sea lion', None),
        ('a sea lion on a rock', 'lion', 'without the class name'),
        ('a lion by the sea', 'lion', None),
        ('a st-bernard in snow', 'StBernard', None),
        ('a St. Bernard and a lion', 'StBernard', 'with another class'),
        ('a cat on a door mat', 'cat', 'with another class'),
        ('a cat by the door', 'cat', None),
        ('the cats', 'cat', 'with nothing but the name'),
        ('a <b>cat</b> asleep', 'cat', 'empty or with markup'),
        ('a cat\x07 asleep', 'cat', 'empty or with markup'),
        ('', 'cat', 'empty or with markup'),
    ],
)
def test_a_sentence_names_its_class_and_no_other(sentence: str, label: str, reason: str | None) -> None:
    assert fault(sentence, label, VOCABULARY) == reason


def test_classes_that_differ_by_their_hints_do_not_reject_each_others_name() -> None:
    cranes = Vocabulary({'bird': 'crane', 'machine': 'crane', 'cat': 'cat'})
    assert fault('a crane in the fog', 'bird', cranes) is None
    assert fault('a crane in the fog', 'machine', cranes) is None
    assert fault('a crane in the fog', 'cat', cranes) == 'without the class name'


@pytest.mark.parametrize(
    'other', ['a cat sits on the mat!', 'The cat sits on the mat', 'the cats sits on a mat', 'on the mat sits a cat', 'A CAT, sits on   the mat.']
)
def test_sentences_that_differ_in_case_punctuation_articles_or_order_are_the_same(other: str) -> None:
    assert sameness('a cat sits on a mat') == sameness(other)
    assert sameness('a cat sits on a mat') != sameness('a cat sits under a mat')


@pytest.mark.parametrize('raw', ['a cat on a mat', '  a cat on  a mat.\nAnd more', '1. "a cat on a mat."', '\n- a cat on a mat', '2) a cat on a mat'])
def test_what_a_model_writes_around_its_sentence_is_taken_off(raw: str) -> None:
    assert clean_sentence(raw) == 'a cat on a mat'


# --- the run ---


def test_every_kept_sentence_names_its_class_alone_and_none_is_repeated(writer: Path, tmp_path: Path) -> None:
    source = prepared(enhanced(writer, tmp_path))
    vocabulary = Vocabulary({a: a for a in ANIMALS})
    for animal in ANIMALS:
        prompts = set(itertools.islice(source.prompts(animal, 0), 20))
        assert len(prompts) == 20
        assert all(p.startswith('a photo of ') and fault(p, animal, vocabulary) is None for p in prompts)
        assert len({sameness(p) for p in prompts}) == 20
    assert source.notes() == []
    lines = [json.loads(line) for line in source.file.read_text().splitlines()]
    assert any(row.get('with another class') for row in lines)  # the rule had something to refuse
    assert any(row.get('repeated') for row in lines)


def test_every_round_of_draws_brings_new_sentences(writer: Path, tmp_path: Path) -> None:
    source = prepared(enhanced(writer, tmp_path, sentences=52, draws=1000), ['cat'])
    assert source.notes() == []  # more than the 50 of one round


def test_the_same_options_write_the_same_sentences_and_another_seed_others(writer: Path, tmp_path: Path) -> None:
    one, two = prepared(enhanced(writer, tmp_path / '1')), prepared(enhanced(writer, tmp_path / '2'))
    assert one.file.read_bytes() == two.file.read_bytes()
    assert one.identity() == two.identity()
    assert prepared(enhanced(writer, tmp_path / '3', seed=1)).identity() != one.identity()


def test_sampling_leaves_the_global_random_state_alone(writer: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prepared(enhanced(writer, tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_a_second_run_reads_the_file_and_loads_no_model(writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(enhanced(writer, tmp_path)).identity()
    monkeypatch.setattr(enhance, 'SentenceWriter', None)
    assert prepared(enhanced(writer, tmp_path)).identity() == first


def test_a_moved_model_folder_is_the_same_model_and_changed_weights_are_another(writer: Path, tmp_path: Path) -> None:
    shutil.copytree(writer, tmp_path / 'copy')
    assert model_identity(str(tmp_path / 'copy')) == model_identity(str(writer))
    weights = tmp_path / 'copy' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'\x01')
    assert model_identity(str(tmp_path / 'copy')) != model_identity(str(writer))


def test_whatever_decides_the_sentences_has_a_file_of_its_own(writer: Path, tmp_path: Path) -> None:
    base: dict[str, object] = {'sentences': 2, 'draws': 50}
    changes: list[dict[str, object]] = [
        {},
        {'seed': 1},
        {'temperature': 0.9},
        {'top_k': 5},
        {'top_p': 0.9},
        {'max_new_tokens': 12},
        {'instruction': 'the {}'},
        {'draws': 60},
    ]
    files = [prepared(enhanced(writer, tmp_path, **{**base, **change})).file for change in changes]
    files.append(prepared(enhanced(writer, tmp_path, **base), ANIMALS[:2]).file)
    assert len(set(files)) == len(files)


def test_a_hand_edit_is_respected_and_changes_the_identity(writer: Path, tmp_path: Path) -> None:
    source = prepared(enhanced(writer, tmp_path, sentences=3))
    others = [line for line in source.file.read_text().splitlines() if not ('"sentence"' in line and '"class": "cat"' in line)]
    source.file.write_text('\n'.join([*others, json.dumps({'class': 'cat', 'sentence': 'a very fat cat'})]) + '\n')
    again = prepared(enhanced(writer, tmp_path, sentences=3))
    assert again.prompt('cat', 0, 0) == again.prompt('cat', 0, 1) == 'a photo of a very fat cat'
    assert again.identity() != source.identity()
    assert again.prompt('dog', 0, 0) == source.prompt('dog', 0, 0)


def test_a_sentence_file_serves_as_a_prompt_file(writer: Path, tmp_path: Path) -> None:
    source = prepared(enhanced(writer, tmp_path, sentences=3))
    from_file = FromFile(str(source.file), template='a photo of {}')
    from_file.prepare(ANIMALS)
    assert [from_file.prompt('fox', 4, n) for n in range(6)] == [source.prompt('fox', 4, n) for n in range(6)]


def test_a_broken_hand_edit_is_refused_with_its_line(writer: Path, tmp_path: Path) -> None:
    source = prepared(enhanced(writer, tmp_path, sentences=3))
    text = source.file.read_text()
    for bad, named in (
        ('{"class": "cat", "sentence": "x', 'line 2'),
        ('{"class": "cow", "sentence": "a cow"}', "'cow'"),
        ('{"class": "cat", "sentence": " "}', 'empty'),
    ):
        head, tail = text.split('\n', 1)
        source.file.write_text(f'{head}\n{bad}\n{tail}')
        with pytest.raises(DataError, check=lambda e, named=named: named in e.what and bool(e.cure)):
            prepared(enhanced(writer, tmp_path, sentences=3))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the language model is asked for, in order; 'load' for each time it is loaded."""
    seen: list[str] = []

    class Recording(SentenceWriter):
        def __init__(self, *args: object) -> None:
            seen.append('load')
            super().__init__(*args)

        def write(self, name: str, *args: object, **options: object) -> list[str]:
            seen.append(name)
            return super().write(name, *args, **options)

    monkeypatch.setattr(enhance, 'SentenceWriter', Recording)
    return seen


@pytest.mark.parametrize(
    'tail',
    [
        b'',
        b'{"class": "fox", "sentence": "a fox',
        b'{"class": "fox", "sentence": "a fox in snow"}\n',
        b'{"class": "fox", "kept": 0}',
        b'12\n',
    ],
)
def test_an_interrupted_run_goes_on_after_its_last_class_and_ends_with_the_same_file(writer: Path, tmp_path: Path, asked: list[str], tail: bytes) -> None:
    def stop(said: str) -> None:
        if "for 'dog'" in said:
            raise KeyboardInterrupt

    source = enhanced(writer, tmp_path / 'cut')
    with pytest.raises(KeyboardInterrupt):
        source.prepare(ANIMALS, stop)
    assert not source.file.exists()
    (partial,) = source.file.parent.iterdir()
    with open(partial, 'ab') as file:
        file.write(tail)
    asked.clear()
    again = prepared(enhanced(writer, tmp_path / 'cut'))
    assert set(asked) == {'load', 'fox'}
    assert again.file.read_bytes() == prepared(enhanced(writer, tmp_path / 'whole')).file.read_bytes()
    assert list((tmp_path / 'cut').iterdir()) == [again.file]


def test_of_two_runs_at_once_one_writes_and_the_other_waits_for_its_sentences(writer: Path, tmp_path: Path, asked: list[str]) -> None:
    one, two = enhanced(writer, tmp_path), enhanced(writer, tmp_path)
    other = threading.Thread(target=two.prepare, args=(ANIMALS,))

    def begin(said: str) -> None:
        if "for 'cat'" in said:
            other.start()

    one.prepare(ANIMALS, begin)
    other.join(60)
    assert not other.is_alive()
    assert asked.count('load') == 1
    assert one.identity() == two.identity()


def test_a_class_that_falls_short_is_reported_and_not_fatal(writer: Path, tmp_path: Path) -> None:
    source = prepared(enhanced(writer, tmp_path, sentences=40, draws=50), [*ANIMALS, 'walrus'])
    notes = source.notes()
    assert any("'walrus' has 0 of 40 sentences, so its plain name stands in" in n for n in notes)
    assert all(str(source.file) in n for n in notes)
    assert source.prompt('walrus', 0, 3) == 'a photo of walrus'


def test_a_model_that_follows_instructions_is_asked_in_its_chat_format(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    size = len(save_tokenizer(tmp_path / 'gpt'))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'gpt')
    tokenizer.chat_template = "{% for m in messages %}photo {{ m['content'] }} and{% endfor %}"
    tokenizer.save_pretrained(tmp_path / 'gpt')
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)).save_pretrained(
        tmp_path / 'gpt'
    )
    model = SentenceWriter(str(tmp_path / 'gpt'), None, 'a {}', 'cpu')
    seen = []
    tokenize = model.tokenizer.__class__.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.tokenizer.__class__, '__call__', lambda self, text, **k: seen.append(text) or tokenize(self, text, **k))
        written = model.write('cat', 4, 0, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=5)
    assert seen == ['photo a cat and']
    assert len(written) == 4
    assert not any(w.startswith('photo a cat and') for w in written)  # the question is not part of the answer


# --- the embedded model ---


def test_the_embedded_model_writes_sentences_for_digits_and_says_what_it_cannot_write(tmp_path: Path) -> None:
    digits = ['three', 'eight', 'walrus']
    source = Enhanced('embedded:digits_t5', sentences=20, cache=str(tmp_path), device='cpu')
    source.prepare(digits)
    for label in digits[:2]:
        prompts = {source.prompt(label, 0, n) for n in range(20)}
        assert len(prompts) == 20
        assert all(p.startswith('a photo of ') and label in p.split(',')[0].split() for p in prompts)
    (note,) = source.notes()
    assert "'walrus' has 0 of 20 sentences" in note
    assert json.loads(source.file.read_text().splitlines()[0])['made_with']['commit'] is None


def test_an_embedded_model_is_known_by_its_content_and_not_by_its_card(tmp_path: Path) -> None:
    embedded = model_identity('embedded:digits_t5')
    shutil.copytree(embedded_folder('embedded:digits_t5'), tmp_path / 'copy')
    (tmp_path / 'copy' / 'card.json').write_text('{}')
    assert model_identity(str(tmp_path / 'copy')) == embedded
    with open(tmp_path / 'copy' / 'tokenizer.json', 'a') as file:
        file.write(' ')
    assert model_identity(str(tmp_path / 'copy')) != embedded


@pytest.mark.parametrize(('name', 'named'), [('embedded:digits_t6', 'no embedded model'), ('embedded:digits_clip', 'config.json is missing')])
def test_an_embedded_name_of_no_language_model_is_refused(tmp_path: Path, name: str, named: str) -> None:
    with pytest.raises(ModelError, check=lambda e: named in e.what and bool(e.cure)):
        prepared(enhanced(Path(name), tmp_path))


# --- models that are not there ---


def test_offline_a_missing_model_is_refused_without_touching_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)  # read at import: what a later setting must not rely on
    with pytest.raises(ModelError, check=lambda e: 'mrm8488/t5-base-finetuned-common_gen' in e.what and 'hf download' in e.cure):
        prepared(Enhanced(cache=str(tmp_path)))


@pytest.mark.parametrize(
    ('part', 'named'), [('config.json', 'config.json is missing'), ('model.safetensors', 'safetensors is missing'), ('tokenizer.json', 'cannot be loaded')]
)
def test_an_incomplete_model_folder_is_refused(writer: Path, tmp_path: Path, part: str, named: str) -> None:
    shutil.copytree(writer, tmp_path / 'model')
    (tmp_path / 'model' / part).unlink()
    with pytest.raises(ModelError, check=lambda e: named in e.what and bool(e.cure)):
        prepared(enhanced(tmp_path / 'model', tmp_path / 'cache'))


def test_weights_cut_short_are_refused(writer: Path, tmp_path: Path) -> None:
    shutil.copytree(writer, tmp_path / 'model')
    weights = tmp_path / 'model' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match='cannot be loaded'):
        prepared(enhanced(tmp_path / 'model', tmp_path / 'cache'))


def test_pickled_weights_are_refused(writer: Path, tmp_path: Path) -> None:
    shutil.copytree(writer, tmp_path / 'model')
    (tmp_path / 'model' / 'model.safetensors').rename(tmp_path / 'model' / 'pytorch_model.bin')
    with pytest.raises(ModelError, match=r'pytorch_model.bin.*pickle'):
        prepared(enhanced(tmp_path / 'model', tmp_path / 'cache'))


def test_code_in_a_model_folder_is_never_run(writer: Path, tmp_path: Path) -> None:
    shutil.copytree(writer, tmp_path / 'model')
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    config |= {'model_type': 'mine', 'auto_map': {'AutoConfig': 'mine.Mine', 'AutoModelForSeq2SeqLM': 'mine.Model'}}
    (tmp_path / 'model' / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'model' / 'mine.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    with pytest.raises(ModelError):
        prepared(enhanced(tmp_path / 'model', tmp_path / 'cache'))
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('model', ['/no/such/folder', './none', '', 'a/b/c'])
def test_a_path_to_no_folder_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match='is no folder'):
        model_identity(model)


def test_a_model_in_the_hub_cache_is_found_offline_by_its_name(writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = 'c' * 40
    kept = tmp_path / 'hub' / 'models--some--writer'
    shutil.copytree(writer, kept / 'snapshots' / commit)
    (kept / 'refs').mkdir()
    (kept / 'refs' / 'main').write_text(commit)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    source = prepared(Enhanced('some/writer', sentences=3, cache=str(tmp_path / 'cache'), device='cpu'))
    assert json.loads(source.file.read_text().splitlines()[0])['made_with']['commit'] == commit
    shutil.rmtree(kept)
    assert prepared(Enhanced('some/writer', sentences=3, cache=str(tmp_path / 'cache'))).identity() == source.identity()


def test_a_cache_folder_that_cannot_be_made_is_refused(writer: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot be written'):
        prepared(enhanced(writer, tmp_path / 'file'))


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        *[
            ({'sentences': 0}, 'sentences = 0'),
            ({'sentences': 2.5}, 'sentences = 2.5'),
            ({'sentences': 20, 'draws': 10}, 'draws = 10'),
            ({'top_k': -1}, 'top_k = -1'),
        ],
        *[({'temperature': 0}, 'temperature = 0'), ({'top_p': 0}, 'top_p = 0'), ({'top_p': 1.5}, 'top_p = 1.5'), ({'max_new_tokens': 0}, 'max_new_tokens = 0')],
        *[
            ({'template': 'a photo'}, 'lacks the placeholder'),
            ({'instruction': 'write'}, 'lacks the placeholder'),
            ({'temperature': float('nan')}, 'temperature = nan'),
        ],
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(RecipeError, check=lambda e: named in e.what and bool(e.cure)):
        Enhanced(**options)


def test_the_file_of_the_sentences_is_always_said_and_nothing_else_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for word in ('written', 'read'):
        said: list[str] = []
        source = Enhanced('embedded:digits_t5', sentences=1, cache=str(tmp_path))
        source.prepare(['three'], said.append)
        assert word in said[0] and str(source.file) in said[0]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ''  # transformers would show a bar for the weights


def test_a_partial_file_with_foreign_lines_is_written_anew(tmp_path: Path) -> None:
    source = Enhanced('embedded:digits_t5', sentences=1, cache=str(tmp_path))
    source.prepare(['three'])
    assert source.file is not None
    whole = source.file.read_bytes()
    source.file.rename(source.file.with_name(f'.partial-{source.file.name}'))
    source.file.with_name(f'.partial-{source.file.name}').write_text('{"kept": 3}\n')
    source.prepare(['three'])
    assert source.file.read_bytes() == whole


def test_a_writer_without_its_tokenizer_config_is_refused(tmp_path: Path) -> None:
    model = tmp_path / 't5'
    shutil.copytree(embedded_folder('embedded:digits_t5'), model)
    (model / 'tokenizer_config.json').unlink()
    with pytest.raises(ModelError, match=r'cannot be loaded: .*\. Save the folder again'):
        Enhanced(str(model), sentences=1, cache=str(tmp_path / 'cache')).prepare(['three'])


def test_a_device_that_is_not_there_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'Enhanced: device = cuda:99: .*Use auto, cpu or cuda'):
        prepared(Enhanced('embedded:digits_t5', cache=str(tmp_path), device='cuda:99'))
