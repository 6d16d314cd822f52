"""Train a recipe, as MMPretrain's tools/train.py does: `python tools/train.py RECIPE --work-dir DIR`. Same as `synthaug train`."""

import sys

from synthaug_plugins.cli import main

main(['train', *sys.argv[1:]])
