"""What every recipe of CLIP tuning shares: folders of class folders, the optimiser of He et al. (ICLR 2023), the best epoch on validation.

A recipe adds `synthaug = dict(clip=dict(model=...), ...)`, which sets model, preprocessing and pipelines.
"""

# Epochs of the real set; recipes that mix count in passes over the synthetic one.
max_epochs = 30


def _loader(batch_size, shuffle, dataset):
    return dict(
        batch_size=batch_size,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(type='mmengine.DefaultSampler', shuffle=shuffle),
        dataset=dataset,
    )


train_dataloader = _loader(32, True, dict(type='synthaug_plugins.FewShotDataset', data_root='data/train', shots=16, seed=1))
# The images to choose on are none of the shots: min(shots, 4) per class, as in CoOp. Where there is a folder of them, write
# dict(type='mmpretrain.CustomDataset', data_root='data/val').
val_dataloader = _loader(256, False, dict(type='synthaug_plugins.FewShotDataset', data_root='data/train', shots=16, seed=1, part='val'))
test_dataloader = _loader(256, False, dict(type='mmpretrain.CustomDataset', data_root='data/test'))
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]
test_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='mmengine.CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=50),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', interval=1, save_best='accuracy/top1', rule='greater', max_keep_ckpts=1),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo'))
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
