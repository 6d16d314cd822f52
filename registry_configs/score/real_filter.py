"""Real filter (He et al. 2023): drop an image that is closer to real images of another class than to its own.

synthaug score stores/mine real_filter --data my/images
"""

# Every option: the docstring of synthaug_plugins.curation.real_filter.RealFilter.
inspectors = [
    dict(
        type='synthaug_plugins.RealFilter',
        model='RN50',
        margin=0.0,  # by how much another class may be closer, in cosine
    ),
]
