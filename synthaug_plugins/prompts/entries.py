"""The prompt sources as registry entries. Apart from them, so that reading a table of class names does not load MMEngine."""

from synthaug_plugins.prompts.enhance import Enhanced
from synthaug_plugins.prompts.learned import LearnedWords
from synthaug_plugins.prompts.sources import Basic, ClassNameFree, FromFile
from synthaug_plugins.registry import PROMPTS

for entry in (Basic, ClassNameFree, Enhanced, FromFile, LearnedWords):
    PROMPTS.register_module(module=entry)
