"""CIFAR-10: an embedding for each image, at 128 pixels, for Stable Diffusion 1.4. Needs a GPU.

synthaug learn embeddings inversion_cifar10 --data data/cifar10/train --out embeddings/cifar10
synthaug generate inversion_cifar10 --data data/cifar10/train --out stores/cifar10-inversion

How it differs from the paper: _base_/inversion_learn.py.
"""

_base_ = './_base_/inversion_learn.py'

model = dict(image_size=128)  # as published; the images made of them are stored at 32 pixels
