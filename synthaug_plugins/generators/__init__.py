"""Generators: each file one registry entry that turns a batch of requests into images; and what steers them."""

from synthaug_plugins.generators import (  # noqa: F401  importing registers them
    boost_and_skip,
    composition,
    copies,
    da_fusion,
    diffusion_inversion,
    edm,
    guidance,
    minority_classifier,
    real_guidance,
    round_trip,
    self_guided,
    text_to_image,
)
