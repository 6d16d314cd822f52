"""Drop images that are almost the same as an earlier one of their class, over the whole store.

synthaug score stores/mine near_duplicates
"""

# Every option: the docstring of synthaug_plugins.curation.duplicates.NearDuplicates.
inspectors = [
    dict(
        type='synthaug_plugins.NearDuplicates',
        distance=4,  # bits of 64 that may differ; 0 for images of one layout, such as digits
    ),
]
