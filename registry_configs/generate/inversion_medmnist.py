"""PathMNIST, BloodMNIST or DermaMNIST by Diffusion Inversion: images of 128 pixels from an embedding of each real one, stored at 28. Needs a GPU.

synthaug learn embeddings inversion_medmnist --data data/medmnist/train --out embeddings/medmnist
synthaug generate inversion_medmnist --data data/medmnist/train --out stores/medmnist-inversion
synthaug train inversion_medmnist ...

What differs from the paper: _base_/inversion_generate.py. There the mean to lead away from is that of the class: unconditional='class'.
"""

_base_ = './_base_/inversion_generate.py'

generator = dict(
    embeddings='embeddings/medmnist/embeddings',  # what the first command above writes
    image_size=128,  # the size that it learned for
    alphas=(0.0, 0.05, 0.1),  # as published for these sets
)
image = dict(format='png', size=28)
