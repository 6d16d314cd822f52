"""CIFAR-100: an embedding for each image, at 128 pixels, for Stable Diffusion 1.4. Needs a GPU.

synthaug learn embeddings inversion_cifar100 --data data/cifar100/train --out embeddings/cifar100
synthaug generate inversion_cifar100 --data data/cifar100/train --out stores/cifar100-inversion

How it differs from the paper: _base_/inversion_learn.py.
"""

_base_ = './_base_/inversion_learn.py'

model = dict(image_size=128)  # as published; the images made of them are stored at 32 pixels
