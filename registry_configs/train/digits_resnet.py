"""A small residual network on 8 x 8 digits: the classifier of the demo. About 3 s on one core.

Set the folders (each holds one sub-folder per class), on the command line or in a recipe that inherits this one:
`train_dataloader.dataset.data_root`, `val_dataloader.dataset.data_root`, `test_dataloader.dataset.data_root`.
"""

# Training takes max_iters steps of one batch each and goes round the folder as often as that needs, so a run on
# 10 images and one on 50 take equal time.
max_iters = 200
batch_size = 32

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='mmpretrain.ResNet_CIFAR',
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=4,
        # 8 x 8 pixels become 1 x 1: average pooling of a larger map loses where a stroke was (6 points worse at 1 shot, on validation).
        strides=(1, 2, 2, 2),
        out_indices=(3,),
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
# Grey levels 0..255 become -1..1.
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)

# A shift by at most one pixel keeps a digit what it is; a flip does not.
train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.RandomCrop', crop_size=8, padding=1),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [dict(type='mmpretrain.LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mmengine.InfiniteSampler', shuffle=True),
    dataset=dict(type='mmpretrain.CustomDataset', data_root='data/digits/train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mmengine.DefaultSampler', shuffle=False),
    dataset=dict(type='mmpretrain.CustomDataset', data_root='data/digits/val', pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mmengine.DefaultSampler', shuffle=False),
    dataset=dict(type='mmpretrain.CustomDataset', data_root='data/digits/test', pipeline=test_pipeline),
)
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]
test_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='mmengine.CosineAnnealingLR', by_epoch=False, begin=20, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=25)
val_cfg = dict()
test_cfg = dict()

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=50),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', by_epoch=False, interval=max_iters, save_best='accuracy/top1', max_keep_ckpts=1),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo'))
log_processor = dict(by_epoch=False)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
