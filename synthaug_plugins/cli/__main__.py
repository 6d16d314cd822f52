"""python -m synthaug_plugins.cli"""

from synthaug_plugins.cli import main

main()
