"""A linear head on a narrow ResNet-18 that stays as its pre-training left it: how good are its features on 32 x 32 images? A minute on one core.

synthaug train linear_probe_resnet_cifar10 --work-dir runs/probe --cfg-options custom_hooks.0.checkpoint=runs/pretrain/iter_1000.pth \
    train_dataloader.dataset.data_root=data/train val_dataloader.dataset.data_root=data/val test_dataloader.dataset.data_root=data/test

Network, loaders and lengths are those of finetune_resnet_cifar10. The backbone is compared with the checkpoint weight by weight. The best learning rate differs
much between supervised and self-supervised backbones: choose it on validation, from 0.1 to 30.
"""

_base_ = './finetune_resnet_cifar10.py'

model = dict(backbone=dict(frozen_stages=4))
# What the backbone is; ema=True takes the average that an EMAHook kept.
custom_hooks = [dict(type='synthaug_plugins.FrozenBackboneHook', checkpoint='runs/pretrain/iter_1000.pth')]
optim_wrapper = dict(optimizer=dict(lr=1.0, weight_decay=0))
