"""Type what a page of the documentation says, as a reader would: its bash blocks in order, in one shell, in a new folder.

    python tools/run_docs.py README.md docs/own-data.md --folder runs/docs --out tools/benchmarks/results/run_docs.txt

A block after a line `<!-- not run: why -->` is left out and listed. A block of python or toml is a file: the text before it says "this is `NAME`".
The folder holds links to this checkout's tools and docs, nothing else; what the page makes stays in it. With --out the outcome is kept: pages that were not
run this time keep their entry, and each entry has the hash of what was typed, so that tests/test_docs.py notices a page that was changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(bash|python|toml)\n(.*?)^```', re.M | re.S)
LEFT_OUT = re.compile(r'<!-- not run: (.*?) -->\s*\Z')
FILE = re.compile(r'this is `([\w.-]+)`[^`]*\Z')
HEAD = """What a reader types, typed: each page from an empty folder, on two CPU cores of a shared virtual machine, beside other work.
command: python tools/run_docs.py {pages} --folder runs/docs --out tools/benchmarks/results/run_docs.txt
Blocks that were not run are listed with the reason that stands beside them in the page.
"""


def script(page: str) -> tuple[str, list[str]]:
    """One shell script of a page, empty where nothing of it is run; and what is not run, each with the reason.

    Raises:
        ValueError: a block of python or toml is neither a file nor marked as not run.
    """
    lines, left_out = [], []
    for block in BLOCK.finditer(page):
        language, text = block.groups()
        before = page[: block.start()].rstrip()
        if why := LEFT_OUT.search(before):
            left_out.append(f'{text.splitlines()[0]}  ({why[1]})')
        elif language == 'bash':
            lines.append(text)
        elif name := FILE.search(before):
            lines.append(f"cat > {name[1]} <<'END_OF_FILE'\n{text}END_OF_FILE")
        else:
            raise ValueError(f'say "this is `NAME`" or `<!-- not run: why -->` before the block that begins with {text.splitlines()[0]!r}')
    return '\n'.join(lines), left_out


def digest(typed: str) -> str:
    """What an entry is known by: a page whose text changed around the same commands needs no new run."""
    return hashlib.sha256(typed.encode()).hexdigest()[:12]


def run(page: Path, folder: Path) -> str | None:
    """Type one page in a new folder. The entry of the outcome; None where a command failed."""
    name = str(page.resolve().relative_to(REPO))
    typed, left_out = script(page.read_text())
    outcome = 'nothing to run'
    if typed:
        folder = folder / name.removesuffix('.md').replace('/', '-')
        folder.mkdir(parents=True)
        for link in ('tools', 'docs'):
            (folder / link).symlink_to(REPO / link)
        environment = {**os.environ, 'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}
        started = time.monotonic()
        ended = subprocess.run(['bash', '-x', '-c', 'set -euo pipefail\n' + typed], cwd=folder, env=environment)
        if ended.returncode:
            return None
        outcome = f'run to its end, {time.monotonic() - started:.0f} s, typed {digest(typed)}'
    return '\n'.join([f'{name}: {outcome}', *(f'  not run: {b}' for b in left_out)])


def kept(out: Path) -> dict[str, str]:
    """The entries of a file by their pages."""
    return {e.partition(':')[0]: e for e in re.findall(r'^\S+\.md: .*(?:\n  .*)*', out.read_text(), re.M)} if out.exists() else {}


def keep(entry: str, out: Path) -> None:
    """Put an entry in the place of an older one of its page, or at its place by name."""
    by_page = {**kept(out), entry.partition(':')[0]: entry}
    out.write_text('\n'.join([HEAD.format(pages=' '.join(sorted(by_page))), *(by_page[page] for page in sorted(by_page))]) + '\n')


def main() -> None:
    """Run one page after the other; the first command that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='+', type=Path)
    parser.add_argument('--folder', type=Path, default=Path('runs/docs'), help='a new folder for each page is made in it')
    parser.add_argument('--out', type=Path, help='a file that keeps the outcome of each page')
    arguments = parser.parse_args()
    for page in arguments.pages:
        entry = run(page, arguments.folder)
        if entry is None:
            sys.exit(f'{page}: FAILED')
        print(entry)
        if arguments.out:
            keep(entry, arguments.out)


if __name__ == '__main__':
    main()
