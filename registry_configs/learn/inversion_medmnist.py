"""PathMNIST, BloodMNIST or DermaMNIST: an embedding for each image, at 128 pixels, for Stable Diffusion 1.4. Needs a GPU.

synthaug learn embeddings inversion_medmnist --data data/medmnist/train --out embeddings/medmnist
synthaug generate inversion_medmnist --data data/medmnist/train --out stores/medmnist-inversion

How it differs from the paper: _base_/inversion_learn.py.
"""

_base_ = './_base_/inversion_learn.py'

model = dict(image_size=128)  # the images made of them are stored at 28 pixels
