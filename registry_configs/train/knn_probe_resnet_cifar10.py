"""Nearest neighbours by the features of a narrow ResNet-18: a probe without any training. Seconds on one core.

synthaug test knn_probe_resnet_cifar10 runs/pretrain/iter_1000.pth --work-dir runs/knn --cfg-options \
    test_cfg.bank_dataloader.dataset.data_root=data/train test_dataloader.dataset.data_root=data/test

Each of the k most similar training images votes with exp(cosine / temperature) (Wu et al., CVPR 2018). k = 20 suits few images, 200 many.
"""

_base_ = './finetune_resnet_cifar10.py'

test_cfg = dict(
    type='synthaug_plugins.NearestNeighbourLoop',
    k=20,
    temperature=0.07,
    bank_dataloader=dict(
        batch_size=256,
        num_workers=2,
        persistent_workers=True,
        sampler=dict(type='mmengine.DefaultSampler', shuffle=False),
        dataset=dict(type='mmpretrain.CustomDataset', data_root='data/train', pipeline=_base_.test_pipeline),
    ),
)
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
val_dataloader = None
val_cfg = None
val_evaluator = None
