"""CIFAR-10 by Diffusion Inversion: images of 128 pixels from an embedding of each real one, stored at 32. Needs a GPU.

synthaug learn embeddings inversion_cifar10 --data data/cifar10/train --out embeddings/cifar10
synthaug generate inversion_cifar10 --data data/cifar10/train --out stores/cifar10-inversion
synthaug train inversion_cifar10 ...

What differs from the paper: _base_/inversion_generate.py. By accounts of it that we could not verify, synthetic images are better than real ones only
where real images are few.
"""

_base_ = './_base_/inversion_generate.py'

# What the first command above writes; the size is the one that it learned for.
generator = dict(embeddings='embeddings/cifar10/embeddings', image_size=128)
image = dict(format='png', size=32)
