"""What the texts tell a reader to type can be typed: every command parses, every recipe, script and page that they name is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import REPO
from synthaug_plugins.cli import every_command, spread_cfg_options
from synthaug_plugins.engine.generate import generate
from synthaug_plugins.engine.recipe import load_recipe
from synthaug_plugins.errors import RecipeError
from synthaug_plugins.recipes import find_recipe
from synthaug_plugins.registry import GENERATORS
from synthaug_plugins.store.store import Store

TEXTS = sorted(p for p in (*REPO.glob('*.md'), *(REPO / 'docs').rglob('*.md')) if p.name not in ('reference.md', 'CHANGELOG.md'))
OWN = re.compile(r'(?:tools|docs|registry_configs|synthaug_plugins|tests)/[\w./-]*\w')


def commands(text: str) -> Iterator[str]:
    """Lines of the blocks that are marked as bash, those that go on joined."""
    for block in re.findall(r'^```bash\n(.*?)^```', text, re.M | re.S):
        yield from block.replace('\\\n', ' ').splitlines()


def recipe_commands() -> Iterator[tuple[str, str]]:
    """What the head of each shipped recipe says about its use."""
    for path in sorted((REPO / 'registry_configs').rglob('*.py')):
        head = path.read_text().split('"""')[1]
        for line in head.replace('\\\n', ' ').splitlines():
            if line.strip().startswith('synthaug '):
                yield str(path.relative_to(REPO)), line.strip()


TYPED = [(str(path.relative_to(REPO)), line) for path in TEXTS for line in commands(path.read_text())] + list(recipe_commands())


def test_every_command_of_the_texts_parses_and_names_recipes_that_are_there() -> None:
    known, wrong, seen = every_command(), [], 0
    for place, line in TYPED:
        words = shlex.split(line.replace('$seed', '0').replace('$FOLDERS', 'data=x').partition(' ...the ')[0], comments=True)
        words = words[: words.index('>')] if '>' in words else words
        if 'synthaug_plugins.cli' in words:  # after torchrun
            words = ['synthaug', *words[words.index('synthaug_plugins.cli') + 1 :]]
        if words[:1] != ['synthaug'] or {'$@', '...', 'MY_RECIPE'} & {*words}:
            continue
        seen += 1
        name = next((n for n in (' '.join(words[1:3]), words[1]) if n in known), None)
        if name is None:
            wrong.append(f'{place}: no such command: {line}')
            continue
        try:
            context = known[name].make_context(name, spread_cfg_options(words[1 + len(name.split()) :]))
        except Exception as error:  # typer carries a copy of click, whose classes have no public name
            wrong.append(f'{place}: {error}: {line}')
            continue
        recipe = context.params.get('recipe')
        if recipe and not recipe.endswith('.py') and '::' not in recipe:
            kind = name.split()[0]
            try:
                find_recipe(recipe, {'plan': 'generate', 'explain': 'train', 'test': 'train'}.get(kind, kind))
            except RecipeError as error:
                wrong.append(f'{place}: {error}: {line}')
    assert not wrong, '\n'.join(wrong)
    assert seen > 100


@pytest.mark.parametrize('path', TEXTS, ids=lambda path: str(path.relative_to(REPO)))
def test_files_that_a_text_names_are_there(path: Path) -> None:
    text = path.read_text()
    linked = {path.parent / link.partition('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in link and not link.startswith('#')}
    named = {REPO / name for name in OWN.findall(text) if '*' not in name}
    gone = sorted(str(p) for p in linked | named if not p.exists() and not p.with_suffix('.py').exists())
    assert not gone


@pytest.mark.parametrize('path', TEXTS, ids=lambda path: str(path.relative_to(REPO)))
def test_what_a_text_tells_to_type_was_typed_as_it_stands_or_says_why_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / 'tools'))
    from run_docs import digest, kept, script

    typed, left_out = script(path.read_text())
    if not typed and not left_out:
        return
    name = str(path.relative_to(REPO))
    entry = kept(REPO / 'tools' / 'benchmarks' / 'results' / 'run_docs.txt').get(name, '')
    wanted = [f'run to its end, (s), typed {digest(typed)}' if typed else 'nothing to run', *(f'  not run: {b}' for b in left_out)]
    assert re.sub(r'\d+ s,', '(s),', entry) == f'{name}: ' + '\n'.join(wanted), f'type it again: python tools/run_docs.py {name}, with --out as in run_docs.txt'


def test_a_block_that_is_neither_typed_nor_says_why_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / 'tools'))
    from run_docs import script

    assert script('this is `a.py`:\n\n```python\nx = 1\n```\n') == ("cat > a.py <<'END_OF_FILE'\nx = 1\nEND_OF_FILE", [])
    assert script('<!-- not run: a GPU -->\n```bash\nrm -r x\nls\n```\n') == ('', ['rm -r x  (a GPU)'])
    with pytest.raises(ValueError, match="before the block that begins with 'x = 1'"):
        script('A fragment:\n\n```python\nx = 1\n```\n')


def test_the_generator_of_the_page_is_whole_and_fills_a_store_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own lines, typed out: 30 of them, registered as a plugin would be, and run by the page's recipe."""
    module, recipe = re.findall(r'^```python\n(.*?)^```', (REPO / 'docs' / 'generator-plugin.md').read_text(), re.M | re.S)
    assert len([line for line in module.splitlines() if line.strip()]) <= 30
    namespace: dict[str, Any] = {}
    exec(module, namespace)
    monkeypatch.setitem(GENERATORS._module_dict, 'Blots', namespace['Blots'])
    (tmp_path / 'blots.py').write_text(recipe)
    whole, again = (tmp_path / name for name in ('whole', 'again'))
    generate(load_recipe(str(tmp_path / 'blots.py'), {'block_size': 10}), whole, 'cpu', quiet=True)
    generate(load_recipe(str(tmp_path / 'blots.py'), {'block_size': 10}), again, 'cpu', quiet=True)
    (again / 'index' / '00001.parquet').unlink()  # what a kill before its commit mark leaves
    generate(load_recipe(str(tmp_path / 'blots.py'), {'block_size': 10}), again, 'cpu', quiet=True)
    rows = [Store.open(folder).index(['id', 'sha256', 'params.grey']).to_pylist() for folder in (whole, again)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 40
