"""Evaluate a checkpoint: `python tools/test.py RECIPE CHECKPOINT --work-dir DIR`. Same as `synthaug test`."""

import sys

from synthaug_plugins.cli import main

main(['test', *sys.argv[1:]])
