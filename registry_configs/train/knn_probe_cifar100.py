"""CIFAR-100 by the nearest training images in a ResNet-50's features: a probe without any training.

synthaug test knn_probe_cifar100 runs/pretrain/epoch_200.pth --work-dir runs/knn --cfg-options \
    test_cfg.bank_dataloader.dataset.data_root=data/cifar100/train test_dataloader.dataset.data_root=data/cifar100/test

Each of the k most similar training images votes with exp(cosine / temperature); k = 200 and 0.07 as in Wu et al. (CVPR 2018). k = 20 suits few images.
"""

_base_ = './linear_probe_cifar100.py'

test_cfg = dict(
    type='synthaug_plugins.NearestNeighbourLoop',
    k=200,
    temperature=0.07,
    bank_dataloader=dict(
        batch_size=256,
        num_workers=8,
        persistent_workers=True,
        sampler=dict(type='mmengine.DefaultSampler', shuffle=False),
        dataset=dict(type='mmpretrain.CustomDataset', data_root='data/cifar100/train', pipeline=_base_.test_pipeline),
    ),
)
custom_hooks = []
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
val_dataloader = None
val_cfg = None
val_evaluator = None
