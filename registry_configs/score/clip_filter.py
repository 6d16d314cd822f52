"""CLIP filter (He et al. 2023): keep an image if CLIP finds its own class more probable than chance, p > 1/N. Writes clip_p.

synthaug score stores/mine clip_filter
"""

# Every option: the docstring of synthaug_plugins.curation.clip_filter.ClipFilter.
inspectors = [
    dict(
        type='synthaug_plugins.ClipFilter',
        model='RN50',  # OpenAI's, as in the paper; 'ViT-B-16', a folder in open_clip's layout, 'embedded:digits_clip' for digits
    ),
]
