"""Generate a store: `python tools/generate.py RECIPE --out FOLDER`. Same as `synthaug generate`."""

import sys

from synthaug_plugins.cli import main

main(['generate', *sys.argv[1:]])
