"""Prompts: what classes are called, templates, prompts without names or from files, and what is refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from synthaug_plugins.errors import DataError, RecipeError, SynthAugError
from synthaug_plugins.prompts.base import PromptSource, pick
from synthaug_plugins.prompts.datasets import DATASETS, dataset_names
from synthaug_plugins.prompts.names import ClassName, clean_label, names_from_labels, read_names
from synthaug_plugins.prompts.sources import Basic, ClassNameFree, FromFile
from synthaug_plugins.prompts.templates import ENSEMBLES, resolve_templates
from synthaug_plugins.prompts.tokens import fit_tokens


def take(source: PromptSource, classes: Sequence[str], label: str, count: int, seed: int = 0, start: int = 0) -> list[str]:
    source.prepare(classes)
    return list(itertools.islice(source.prompts(label, seed, start), count))


def refused(kind: type[SynthAugError], named: str, cause: str = '') -> pytest.RaisesExc:
    """A refusal of this kind whose first sentence names the culprit and which has a cure."""
    return pytest.raises(kind, check=lambda e: named in e.what and cause in e.what and bool(e.cure))


# --- the 17 data sets ---


@pytest.mark.parametrize(
    ('dataset', 'classes'),
    [
        *[('cifar10', 10), ('cifar100', 100), ('caltech101', 102), ('caltech256', 257), ('imagenet', 1000), ('sun397', 397), ('aircraft', 100)],
        *[('birdsnap', 500), ('cars', 196), ('cub', 200), ('flowers', 102), ('food', 101), ('pets', 37), ('dtd', 47), ('eurosat', 10)],
        *[('imagenet_sketch', 1000), ('imagenet_r', 200)],
    ],
)
def test_each_of_the_17_data_sets_speaks_of_every_class_in_its_own_words(dataset: str, classes: int) -> None:
    table = dataset_names(dataset)
    assert len(table) == classes
    source = Basic(dataset=dataset)
    source.prepare(list(table))
    prompts = {source.prompt(label, 0, 0) for label in table}
    assert len(prompts) == classes  # no two classes are asked for alike
    assert all('_' not in p and '  ' not in p for p in prompts)


def test_the_17_data_sets_are_all_there_are() -> None:
    assert len(DATASETS) == 17


@pytest.mark.parametrize(
    ('dataset', 'label', 'prompt'),
    [
        ('eurosat', 'AnnualCrop', 'a centered satellite photo of Annual Crop Land'),
        ('dtd', 'polka-dotted', 'polka-dotted texture'),
        ('aircraft', 'F-16A_B', 'a photo of a F-16A/B, a type of aircraft'),
        ('cub', 'Blue_Jay', 'a photo of a Blue Jay, a type of bird'),
        ('birdsnap', 'Blue_Jay', 'a photo of a Blue Jay, a type of bird'),
        ('flowers', 'tiger lily', 'a photo of a tiger lily, a type of flower'),
        ('food', 'apple_pie', 'a photo of a apple pie, a type of food'),
        ('pets', 'shiba_inu', 'a photo of a shiba inu, a type of pet'),
        ('caltech101', 'car_side', 'a photo of a side of a car'),
        ('caltech256', '101.head-phones', 'a photo of a headphones'),
        ('imagenet', 'n01440764', 'a photo of a tench'),
        ('imagenet', 'tench', 'a photo of a tench'),
        ('sun397', 'apse_indoor', 'a photo of a indoor apse'),
        ('cifar100', 'ray', 'a photo of a ray, fish'),
    ],
)
def test_wording_of_the_paper(dataset: str, label: str, prompt: str) -> None:
    assert take(Basic(dataset=dataset), [label], label, 2) == [prompt, prompt]


def test_hints_can_be_left_out_for_the_papers_exact_wording() -> None:
    assert take(Basic(dataset='cifar100', hints=False), ['ray'], 'ray', 1) == ['a photo of a ray']


def test_classes_that_imagenets_list_calls_alike_are_told_apart() -> None:
    table = dataset_names('imagenet')
    assert [table[w].phrase for w in ('n03773504', 'n04008634', 'n04355933', 'n04356056')] == ['missile', 'projectile', 'sunglass', 'sunglasses']


def test_reading_a_table_loads_neither_torch_nor_mmengine() -> None:
    script = (
        'import sys; from synthaug_plugins.prompts.sources import Basic; from synthaug_plugins.prompts.enhance import Enhanced\n'
        "Enhanced(dataset='imagenet'); Basic(dataset='cub')\nprint([m for m in ('torch', 'mmengine', 'transformers', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


# --- sequences ---


def test_a_prompt_depends_on_seed_class_and_position_alone() -> None:
    source = Basic('cifar')
    long = take(source, ['cat', 'dog'], 'cat', 100, seed=3)
    assert take(source, ['dog', 'cat'], 'cat', 40, seed=3, start=60) == long[60:]
    assert take(source, ['cat', 'dog'], 'cat', 100, seed=4) != long
    assert [p.replace('dog', 'cat') for p in take(source, ['cat', 'dog'], 'dog', 100, seed=3)] != long


def test_the_order_of_prompts_is_the_same_on_every_machine() -> None:
    assert ''.join(pick('abcdef', 7, 'cat', n) for n in range(12)) == 'fbeadceafdbc'


def test_every_template_is_used_equally_often() -> None:
    counts = Counter(take(Basic('cifar'), ['cat'], 'cat', 18 * 5))
    assert len(counts) == 18
    assert set(counts.values()) == {5}


def test_identity_is_plain_json_and_changes_with_what_decides_the_prompts() -> None:
    def identity(*args: str, **options: str) -> str:
        source = Basic(*args, **options)
        source.prepare(['ray', 'cat'] if not options else ['ray', 'wolf'])
        return json.dumps(source.identity(), sort_keys=True)

    assert identity() == identity()
    assert len({identity(), identity('a {}'), identity('cifar'), identity(dataset='cifar100')}) == 4


@pytest.mark.parametrize('name', ENSEMBLES)
def test_ensembles_hold_no_template_twice(name: str) -> None:
    assert resolve_templates(name) == ENSEMBLES[name]


# --- class names of the user ---


def test_class_names_from_a_text_file(tmp_path: Path) -> None:
    (tmp_path / 'names.txt').write_text('snow_leopard\nsea lion\n')
    table = read_names(tmp_path / 'names.txt')
    assert [(e.name, e.text) for e in table.values()] == [('snow_leopard', 'snow leopard'), ('sea lion', 'sea lion')]


def test_a_name_with_several_senses_is_said_with_its_hint(tmp_path: Path) -> None:
    (tmp_path / 'names.json').write_text(
        json.dumps({'crane_1': {'prompt': 'crane', 'hint': 'bird'}, 'crane_2': {'prompt': 'crane', 'hint': 'machine'}, 'ox': 'cow'})
    )
    source = Basic(names=str(tmp_path / 'names.json'))
    classes = ['crane_1', 'crane_2', 'ox']
    assert [take(source, classes, c, 1)[0] for c in classes] == ['a photo of a crane, bird', 'a photo of a crane, machine', 'a photo of a cow']


def test_folder_names_become_words() -> None:
    assert [clean_label(x) for x in ('001.Black_footed_Albatross', 'sea__lion', '3', 'Boeing 707')] == ['Black footed Albatross', 'sea lion', '3', 'Boeing 707']


@pytest.mark.parametrize(
    ('labels', 'named'),
    [
        (['cat', ''], "''"),
        (['cat', ' dog'], "' dog'"),
        (['cat', '..'], "'..'"),
        (['cat', 'a/b'], "'a/b'"),
        (['cat', 'a\\b'], "'a\\\\b'"),
        (['cat', 'a\nb'], "'a\\nb'"),
        (['cat', 'a\x1b[1mb'], 'a\\x1b'),
        (['cat', '<b>cat</b>'], '<b>'),
        (['cat', 'fish &amp; chips'], '&amp;'),
        (['cat', '{cat}'], '{cat}'),
        (['cat', 'cat'], "'cat' is repeated"),
        (['a_b', 'a b'], 'same prompt name'),
        (['Cat', 'cat'], 'same prompt name'),
        (['n01440764'], 'WordNet id'),
        (['n01440764-tench'], 'WordNet id'),
    ],
)
def test_bad_class_names_are_refused(labels: list[str], named: str) -> None:
    with refused(DataError, named):
        names_from_labels(labels)
    with refused(DataError, named):
        Basic().prepare(labels)


@pytest.mark.parametrize(
    ('file', 'text', 'named'),
    [
        ('n.txt', '', 'holds no class names'),
        ('n.txt', 'cat\n\ndog\n', "''"),
        ('n.csv', 'cat', 'neither .txt nor .json'),
        ('n.json', '{"cat": ', 'not valid JSON'),
        ('n.json', '3', 'neither a list nor an object'),
        ('n.json', '["cat", 3]', 'not a name with texts'),
        ('n.json', '{"cat": {"hints": "animal"}}', "unknown key 'hints'"),
        ('n.json', '{"cat": {"hint": 3}}', 'not a name with texts'),
        ('n.json', '{"cat": "cat", "cat": "dog"}', "'cat' is repeated"),
        ('n.json', '{"cat": {"hint": "<i>"}}', 'markup'),
        ('n.json', '{"cat": ""}', 'is empty'),
    ],
)
def test_bad_name_files_are_refused(tmp_path: Path, file: str, text: str, named: str) -> None:
    (tmp_path / file).write_text(text)
    with refused(DataError, named):
        read_names(tmp_path / file)


def test_a_class_that_the_table_lacks_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'Higway'.*Did you mean 'Highway'"):
        Basic(dataset='eurosat').prepare(['Forest', 'Higway'])
    with pytest.raises(DataError, match='cannot be read'):
        Basic(names=str(tmp_path / 'none.txt'))


def test_two_labels_of_one_class_are_refused() -> None:
    with refused(DataError, "'Forest' is repeated"):
        Basic(dataset='eurosat').prepare(['Forest', 'forest'])


def test_a_prompt_before_prepare_is_refused() -> None:
    with refused(RecipeError, "'cat' was not prepared"):
        Basic().prompt('cat', 0, 0)


@pytest.mark.parametrize(
    ('templates', 'named'),
    [
        ('a photo', 'lacks the placeholder'),
        ('cifer', "'cifer' is no ensemble"),
        ([], 'empty'),
        (['a {}', ''], "''"),
        (['a {name}'], 'brace'),
        (['a {} {0.__class__}'], 'brace'),
        (['a {}', 'a {}'], 'more than once'),
        (['a\n{}'], 'control'),
        ([3], '3'),
    ],
)
def test_bad_templates_are_refused(templates: str | list[str], named: str) -> None:
    with refused(RecipeError, named):
        Basic(templates)


def test_an_unknown_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'eurosats'.*Did you mean 'eurosat'"):
        Basic(dataset='eurosats')


def test_braces_in_a_class_name_are_never_format_syntax() -> None:
    with refused(DataError, 'markup'):
        ClassName('x', '{0.__class__}')


# --- class-name-free ---


def test_class_name_free_prompts_say_nothing_of_the_class() -> None:
    source = ClassNameFree(['a photo', 'a photo taken outdoors'])
    found = {p for label in ('cat', 'dog') for p in take(source, ['cat', 'dog'], label, 20)}
    assert found == {'a photo', 'a photo taken outdoors'}
    assert 'cat' not in json.dumps(source.identity())


def test_class_name_free_prompts_that_name_a_class_are_refused() -> None:
    with refused(RecipeError, "names the class 'cat'"):
        ClassNameFree('a photo of two cats').prepare(['cat', 'dog'])
    with refused(RecipeError, 'holds the placeholder'):
        ClassNameFree('a photo of a {}')


# --- from a file ---


@pytest.mark.parametrize(
    ('file', 'text'),
    [
        ('p.json', '{"cat": ["a cat asleep", "a cat awake"], "dog": ["a dog"]}'),
        ('p.jsonl', '{"class": "cat", "prompt": "a cat asleep"}\n\n{"class": "cat", "sentence": "a cat awake"}\n{"class": "dog", "prompt": "a dog"}\n'),
    ],
)
def test_prompts_from_a_file_are_all_used(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    source = FromFile(str(tmp_path / file), template='photo: {}')
    assert set(take(source, ['cat', 'dog'], 'cat', 2)) == {'photo: a cat asleep', 'photo: a cat awake'}
    before = source.identity()
    (tmp_path / file).write_text(text.replace('asleep', 'eating'))
    again = FromFile(str(tmp_path / file), template='photo: {}')
    again.prepare(['cat', 'dog'])
    assert again.identity() != before


def test_templates_from_a_file_hold_for_all_classes(tmp_path: Path) -> None:
    (tmp_path / 'p.txt').write_text('a {} in the rain\na {} in the sun\n')
    assert set(take(FromFile(str(tmp_path / 'p.txt')), ['cat', 'dog'], 'dog', 2)) == {'a dog in the rain', 'a dog in the sun'}


@pytest.mark.parametrize(
    ('file', 'text', 'named'),
    [
        ('p.json', '{"cat": ["a cat"]}', "no prompt for the class 'dog'"),
        ('p.json', '{"cat": ["a cat"], "dog": []}', "no prompt for the class 'dog'"),
        ('p.json', '{"cat": ["a cat"], "dog": ["a dog"], "dig": ["x"]}', "'dig'"),
        ('p.json', '["a cat"]', 'no object of lists'),
        ('p.json', '{"cat": [""]}', 'is empty'),
        ('p.json', '{', 'not valid JSON'),
        ('p.jsonl', '{"class": "cat", "prompt": "a"}\nx', 'line 2'),
        ('p.jsonl', '{"prompt": "a"}', 'names no class'),
        ('p.jsonl', '[1]', 'no JSON object'),
        ('p.csv', 'x', 'no .txt, .json or .jsonl'),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, file: str, text: str, named: str) -> None:
    (tmp_path / file).write_text(text)
    with refused(DataError, named):
        FromFile(str(tmp_path / file)).prepare(['cat', 'dog'])


def test_a_missing_prompt_file_is_refused(tmp_path: Path) -> None:
    with refused(DataError, 'cannot be read'):
        FromFile(str(tmp_path / 'none.txt'))


# --- token limit ---


def word_tokenizer(limit: int) -> object:
    """A real tokenizer of transformers: a word is a token, and each letter of a word it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ['<s>', '</s>', 'photo', 'of', 'cat', *'abcdefghijklmnopqrstuvwxyz']
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate([*vocabulary, *('##' + c for c in 'abcdefghijklmnopqrstuvwxyz'), '?'])}, unk_token='?'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing('<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, bos_token='<s>', eos_token='</s>', unk_token='?')


def test_a_prompt_that_fits_is_unchanged() -> None:
    assert fit_tokens('a  photo of a cat', word_tokenizer(7)) == ('a  photo of a cat', [])


@pytest.mark.parametrize(
    ('limit', 'kept'), [(7, 'a photo of a cat'), (8, 'a photo of a cat'), (9, 'a photo of a cat'), (10, 'a photo of a cat abc'), (3, 'a'), (4, 'a photo')]
)
def test_words_over_the_token_limit_are_cut_whole_and_named(limit: int, kept: str) -> None:
    prompt = 'a photo of a cat abc of cat'
    fitted, dropped = fit_tokens(prompt, word_tokenizer(limit))
    assert fitted == kept
    assert [*kept.split(), *dropped] == prompt.split()
    assert len(word_tokenizer(limit)(fitted).input_ids) <= limit


def test_a_prompt_of_few_letters_fits_without_asking_the_tokenizer() -> None:
    asked: list[str] = []

    class Counting:
        model_max_length = 20

        def __call__(self, text: str, **options: object) -> object:
            asked.append(text)
            return word_tokenizer(20)(text, **options)  # type: ignore[operator]

    assert fit_tokens('abc abc abc abc', Counting()) == ('abc abc abc abc', []) and not asked
    assert fit_tokens('abc abc abc abc..', Counting()) == ('abc abc abc abc..', []) and asked
    assert fit_tokens('\N{SNOWMAN}', Counting())[1] == [] and asked[1:]


def test_a_tokenizer_without_limit_cuts_nothing() -> None:
    assert fit_tokens('cat ' * 500, word_tokenizer(10**30))[1] == []
    assert fit_tokens('cat cat cat', word_tokenizer(10**30), max_tokens=4) == ('cat cat', ['cat'])


def test_a_first_word_over_the_limit_is_refused() -> None:
    with refused(RecipeError, 'nor does its first word'):
        fit_tokens('abcdefghijk cat', word_tokenizer(5))
