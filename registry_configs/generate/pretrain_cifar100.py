"""Downstream-aware pre-training data (He et al., ICLR 2023): 1.2 million images of CIFAR-100's class names. Needs GPUs, for weeks on one.

synthaug generate pretrain_cifar100 --out stores/pretraining

The paper's larger ones, 2.4 and 3.6 million: per_class=24000, per_class=36000. A smaller one: per_class=1200.
For a task of your own give its class names, or let --data take them from folders; then the names speak for themselves:
synthaug generate pretrain_cifar100 --out stores/mine --cfg-options "classes=['red fox', 'grey wolf']" generator.prompts.dataset=None

Then: synthaug train pretrain_then_finetune_cifar100 --work-dir runs/cifar100
"""

_base_ = './_base_/pretraining.py'

from synthaug_plugins.prompts import datasets  # noqa: E402  MMEngine wants _base_ first

classes = list(datasets.dataset_names('cifar100'))
generator = dict(prompts=dict(dataset='cifar100'))
per_class = 12_000
