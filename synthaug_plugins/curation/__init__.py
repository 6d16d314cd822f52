"""Inspectors: each a registry entry that looks at finished images and says which to keep, and why not."""

from synthaug_plugins.curation import clip_filter, cosine_distances, duplicates, minority_score, real_filter, sanity, teacher  # noqa: F401  importing registers them
