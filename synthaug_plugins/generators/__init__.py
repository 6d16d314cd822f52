"""Generators: each file one registry entry that turns a batch of requests into images."""

from synthaug_plugins.generators import edm, real_guidance  # noqa: F401  importing registers them
