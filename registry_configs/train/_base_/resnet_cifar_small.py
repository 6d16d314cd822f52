"""A narrow ResNet-18 for 32 x 32 pixels and the trainer's surroundings: small pre-training and its fine-tuning share them, so backbones fit.

A recipe adds `model=dict(type=..., head=...)`, the preprocessor's type, loaders, optimiser and schedule. Features are 128 numbers. About 0.7 million
parameters: it trains on a few CPU cores.
"""

model = dict(
    backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, stem_channels=16, base_channels=16, num_stages=4, out_indices=(3,)),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
)
# Of CIFAR-10's training images, in RGB. Those of CIFAR-100 differ little, and a backbone wants at its next task what it was trained with.
data_preprocessor = dict(mean=[125.31, 122.95, 113.87], std=[62.99, 62.09, 66.7], to_rgb=True)

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=50),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook'),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo'))
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
