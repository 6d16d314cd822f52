"""CIFAR-10 from class names alone, the basic way of He et al. 2023: the plain name as the prompt, no filter. Needs a GPU.

synthaug generate he2023_basic_cifar10 --out stores/cifar10-basic

What is made and how it differs from the paper: _base_/he2023.py. The paper compares this with he2023_zeroshot_cifar10 in its Table 2.
"""

_base_ = './_base_/he2023_basic.py'

from synthaug_plugins.prompts import datasets  # noqa: E402  MMEngine wants _base_ first

classes = list(datasets.dataset_names('cifar10'))
generator = dict(prompts=dict(dataset='cifar10'))
# The data set's own images have 32 pixels. A line that is commented out in the paper's code shrinks synthetic images to that size first, so
# that both look alike once enlarged for the classifier. Here that is image = dict(size=32).
