"""Generators: each file one registry entry that turns a batch of requests into images; and what steers them."""

from synthaug_plugins.generators import composition, da_fusion, edm, guidance, real_guidance, text_to_image  # noqa: F401  importing registers them
