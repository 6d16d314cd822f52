"""A linear head for CIFAR-100 on a ResNet-50 that stays as its pre-training left it.

synthaug train linear_probe_cifar100 --work-dir runs/probe --cfg-options custom_hooks.0.checkpoint=runs/pretrain/epoch_200.pth \
    train_dataloader.dataset.data_root=data/cifar100/train val_dataloader.dataset.data_root=data/cifar100/val \
    test_dataloader.dataset.data_root=data/cifar100/test

Images are enlarged to 224 pixels. Optimiser and schedule are those of MoCo's linear classification (He et al., CVPR 2020): SGD with lr 30, no decay, 100
epochs, lr x 0.1 at 60 and 80. A supervised backbone wants far less: optim_wrapper.optimizer.lr=0.1. It has not been run to its end here.
"""

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='mmpretrain.ResNet', depth=50, num_stages=4, out_indices=(3,), style='pytorch', frozen_stages=4),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=100, in_channels=2048, loss=dict(type='mmpretrain.CrossEntropyLoss'), topk=(1, 5)),
)
# ImageNet's, as in pre-training.
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=100, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
# What the backbone is; ema=True takes the average that an EMAHook kept.
custom_hooks = [dict(type='synthaug_plugins.FrozenBackboneHook', checkpoint='runs/pretrain/epoch_200.pth')]

train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=224, edge='short', backend='pillow'),
    dict(type='mmpretrain.CenterCrop', crop_size=224),
    dict(type='mmpretrain.PackInputs'),
]


def _loader(folder, pipeline, shuffle):
    dataset = dict(type='mmpretrain.CustomDataset', data_root=folder, pipeline=pipeline)
    return dict(batch_size=256, num_workers=8, persistent_workers=True, sampler=dict(type='mmengine.DefaultSampler', shuffle=shuffle), dataset=dataset)


train_dataloader = _loader('data/cifar100/train', train_pipeline, True)
val_dataloader = _loader('data/cifar100/val', test_pipeline, False)
test_dataloader = _loader('data/cifar100/test', test_pipeline, False)
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1, 5))]
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=30.0, momentum=0.9, weight_decay=0))
param_scheduler = [dict(type='mmengine.MultiStepLR', by_epoch=True, milestones=[60, 80], gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
val_cfg = dict()
test_cfg = dict()

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=100),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', interval=10, save_best='accuracy/top1', rule='greater', max_keep_ckpts=1),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
