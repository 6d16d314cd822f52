"""`pretrain_multi_positive` at the size of a toy: handwritten digits that were made from sentences. About a minute on one CPU core, the images two.

synthaug generate he2023_le_digits --out stores/digits-le --cfg-options per_class=100
synthaug train pretrain_multi_positive_digits --work-dir runs/multi-positive

20 sentences for each digit have 5 images each. The backbone is that of `digits_resnet`, whose training may begin from it.
"""

_base_ = './digits_resnet.py'

max_iters = 400

model = dict(
    type='synthaug_plugins.MultiPositive',
    neck=dict(
        _delete_=True,
        type='mmpretrain.NonLinearNeck',
        in_channels=128,
        hid_channels=128,
        out_channels=64,
        num_layers=3,
        with_bias=True,
        with_last_bn=False,
        with_last_bias=True,
        norm_cfg=dict(type='BN1d'),
    ),
    head=dict(_delete_=True, type='synthaug_plugins.MultiPositiveHead', temperature=0.1),
)
data_preprocessor = dict(_delete_=True, type='mmpretrain.SelfSupDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)

train_dataloader = dict(
    batch_size=16 * 4,  # 16 sentences, 4 images of each
    batch_sampler=dict(type='synthaug_plugins.PromptGroupSampler', images_per_prompt=4),
    dataset=dict(
        _delete_=True,
        type='synthaug_plugins.PromptDataset',
        store='stores/digits-le',
        pipeline=[
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmpretrain.RandomCrop', crop_size=8, padding=1),
            dict(type='mmpretrain.ColorJitter', brightness=0.4, contrast=0.4),
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='mmengine.CosineAnnealingLR', by_epoch=False, begin=20, end=max_iters),
]
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=max_iters)
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None
default_hooks = dict(checkpoint=dict(_delete_=True, type='mmengine.CheckpointHook', by_epoch=False, interval=max_iters))
custom_hooks = [dict(type='synthaug_plugins.MixResumeHook')]
