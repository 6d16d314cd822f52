"""EuroSAT from a few images: an embedding for each image, at 128 pixels, for Stable Diffusion 1.4. Needs a GPU.

synthaug learn embeddings inversion_eurosat --data data/eurosat/16-shot --out embeddings/eurosat
synthaug generate inversion_eurosat --data data/eurosat/16-shot --out stores/eurosat-inversion

How it differs from the paper: _base_/inversion_learn.py.
"""

_base_ = './_base_/inversion_learn.py'

model = dict(image_size=128)  # the images made of them are stored at 64 pixels
dataset = 'eurosat'
