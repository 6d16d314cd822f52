"""Downstream-agnostic pre-training data with a larger label space (He et al., ICLR 2023): ImageNet-1K's names and 1,000 others of ImageNet-21K.

synthaug generate pretrain_imagenet2k --out stores/pretraining

2.4 million images; the paper's larger one, 4.0 million: per_class=2000. Which 1,000 the paper drew is not published: here a seed draws them
(`prompts.imagenet_2k`), and the store keeps their names. Labels are words, since these classes are no data set's. Needs GPUs, for weeks on one.
"""

_base_ = './_base_/pretraining.py'

from synthaug_plugins.prompts import imagenet_2k  # noqa: E402  MMEngine wants _base_ first

classes = imagenet_2k.imagenet_2k(seed=0)
generator = dict(prompts=dict(sentences=120))
per_class = 1200
