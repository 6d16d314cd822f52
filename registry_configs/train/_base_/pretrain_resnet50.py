"""What supervised pre-training of a ResNet-50 on synthetic images shares (He et al., ICLR 2023, section 4): the network, pipeline and surroundings.

A recipe adds optimiser and schedule. There is no validation: the classes of a store are seldom those of a validation set, and the last epoch counts.
"""

max_epochs = 90

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='mmpretrain.ResNet', depth=50, num_stages=4, out_indices=(3,), style='pytorch'),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=2048, loss=dict(type='mmpretrain.CrossEntropyLoss')),
)
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

# The batch of one process; the paper's 512 are 64 on each of 8.
train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='mmengine.DefaultSampler', shuffle=True),
    # Real images, where synthaug.train_on=None; else the store takes their place.
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='data/train',
        pipeline=[
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmpretrain.RandomResizedCrop', scale=224),
            dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)
synthaug = dict(train_on=dict(store='stores/pretraining', num_classes='store'))

train_cfg = dict(by_epoch=True, max_epochs=max_epochs)

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=100),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
