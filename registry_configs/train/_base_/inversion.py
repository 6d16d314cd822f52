"""What every classifier recipe of Diffusion Inversion shares (Zhou et al., 2023): the optimiser, its schedule, how real and synthetic images meet.

A recipe adds the network's stem, the pipelines and the statistics of its images.
"""

max_iters = 50_000
warmup = 1000

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, num_stages=4, out_indices=(3,)),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=512, loss=dict(type='mmpretrain.CrossEntropyLoss')),
)
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)


def _loader(batch_size, sampler, folder):
    return dict(batch_size=batch_size, num_workers=4, persistent_workers=True, sampler=sampler, dataset=dict(type='mmpretrain.CustomDataset', data_root=folder))


_in_order = dict(type='mmengine.DefaultSampler', shuffle=False)
# Training takes max_iters steps and goes round the folder as often as that needs: few images and many take equal time.
train_dataloader = _loader(128, dict(type='mmengine.InfiniteSampler', shuffle=True), 'data/train')
val_dataloader = _loader(256, _in_order, 'data/val')
test_dataloader = _loader(256, _in_order, 'data/test')
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]
test_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]

# A batch is a batch of real images and one of synthetic ones, one after the other: here 64 and 64. ratio=(0, 1) is synthetic images alone.
synthaug = dict(mix=dict(store='stores/inversion', mode='per_batch', ratio=(1, 1), partner='any'))

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
    dict(type='mmengine.CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=warmup, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters // 20)
val_cfg = dict()
test_cfg = dict()

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=100),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', by_epoch=False, interval=max_iters // 20, save_best='accuracy/top1', rule='greater', max_keep_ckpts=1),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo'))
log_processor = dict(by_epoch=False)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
