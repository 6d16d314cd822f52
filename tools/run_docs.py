"""Type what a page of the documentation says, as a reader would: its bash blocks in order, in one shell, in a new folder.

    python tools/run_docs.py docs/own-data.md --folder runs/docs

A block after a line `<!-- not run: why -->` is left out and listed. A python block of which the text before it says "this is `NAME`" is written to that file.
The folder holds links to this checkout's tools and docs, nothing else; what the page makes stays in it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(bash|python)\n(.*?)^```', re.M | re.S)
LEFT_OUT = re.compile(r'<!-- not run: (.*?) -->\s*\Z')
FILE = re.compile(r'this is `([\w.-]+)`[^`]*\Z')


def script(page: str) -> tuple[str, list[str]]:
    """One shell script of a page, and what of it is not run, with the reason."""
    lines, left_out = ['set -euo pipefail'], []
    for block in BLOCK.finditer(page):
        language, text = block.groups()
        before = page[: block.start()].rstrip()
        if why := LEFT_OUT.search(before):
            left_out.append(f'{text.splitlines()[0]}  ({why[1]})')
        elif language == 'bash':
            lines.append(text)
        elif name := FILE.search(before):
            lines.append(f"cat > {name[1]} <<'END_OF_FILE'\n{text}END_OF_FILE")
    return '\n'.join(lines), left_out


def main() -> None:
    """Run one page after the other; the first command that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='+', type=Path)
    parser.add_argument('--folder', type=Path, default=Path('runs/docs'), help='a new folder for each page is made in it')
    arguments = parser.parse_args()
    environment = {**os.environ, 'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}
    for page in arguments.pages:
        folder = arguments.folder / page.stem
        folder.mkdir(parents=True)
        for name in ('tools', 'docs'):
            (folder / name).symlink_to(REPO / name)
        text, left_out = script(page.read_text())
        started = time.monotonic()
        ended = subprocess.run(['bash', '-x', '-c', text], cwd=folder, env=environment)
        print(
            f'{page}: {"run to its end" if ended.returncode == 0 else "FAILED"}, {time.monotonic() - started:.0f} s',
            *(f'  not run: {b}' for b in left_out),
            sep='\n',
        )
        if ended.returncode:
            sys.exit(1)


if __name__ == '__main__':
    main()
