"""Downstream-agnostic pre-training data (He et al., ICLR 2023): 1.2 million images of ImageNet-1K's class names. Needs GPUs, for weeks on one.

synthaug generate pretrain_imagenet1k --out stores/pretraining

The paper's larger one, 2.4 million: per_class=2400. Labels are WordNet ids, as the data set's folders are called.
Then: synthaug train pretrain_resnet50_agnostic --store stores/pretraining --work-dir runs/agnostic
"""

_base_ = './_base_/pretraining.py'

from synthaug_plugins.prompts import datasets  # noqa: E402  MMEngine wants _base_ first

classes = list(datasets.dataset_names('imagenet'))
generator = dict(prompts=dict(dataset='imagenet', sentences=120))
per_class = 1200
