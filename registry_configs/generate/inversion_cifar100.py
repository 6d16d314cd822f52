"""CIFAR-100 by Diffusion Inversion: images of 128 pixels from an embedding of each real one, stored at 32. Needs a GPU.

synthaug learn embeddings inversion_cifar100 --data data/cifar100/train --out embeddings/cifar100
synthaug generate inversion_cifar100 --data data/cifar100/train --out stores/cifar100-inversion
synthaug train inversion_cifar100 ...

What differs from the paper: _base_/inversion_generate.py. There a group of 100 images holds about one of each
class, so that nearly all partners are of another.
"""

_base_ = './_base_/inversion_generate.py'

# What the first command above writes; the size is the one that it learned for.
generator = dict(embeddings='embeddings/cifar100/embeddings', image_size=128)
image = dict(format='png', size=32)
