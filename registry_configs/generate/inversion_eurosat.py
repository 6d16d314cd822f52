"""EuroSAT from a few images by Diffusion Inversion: images of 128 pixels from an embedding of each real one, stored at 64. Needs a GPU.

synthaug learn embeddings inversion_eurosat --data data/eurosat/16-shot --out embeddings/eurosat
synthaug generate inversion_eurosat --data data/eurosat/16-shot --out stores/eurosat-inversion
synthaug train inversion_eurosat ...

What differs from the paper: _base_/inversion_generate.py. There the mean to lead away from is that of the class: unconditional='class'. A class with a
single image has no partner: set alphas=0 for 1 shot.
"""

_base_ = './_base_/inversion_generate.py'

# What the first command above writes; the size is the one that it learned for.
generator = dict(embeddings='embeddings/eurosat/embeddings', image_size=128)
image = dict(format='png', size=64)
