"""ImageNette: an embedding for each image, at 256 pixels, for Stable Diffusion 1.4. Needs a GPU.

synthaug learn embeddings inversion_imagenette --data data/imagenette/train --out embeddings/imagenette
synthaug generate inversion_imagenette --data data/imagenette/train --out stores/imagenette-inversion

How it differs from the paper: _base_/inversion_learn.py.
"""

_base_ = './_base_/inversion_learn.py'

model = dict(image_size=256)  # as published
dataset = 'imagenet'  # its folders are named by WordNet ids
training = dict(batch_size=50)  # four times the pixels: about 11 GiB
