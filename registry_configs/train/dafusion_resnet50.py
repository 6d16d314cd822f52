"""The classifier of DA-Fusion (Trabucco et al., ICLR 2024) on a few real images and variants of them: a linear head on a frozen ResNet-50.

synthaug shots data/train --shots 4 --seed 0 --out data/shots-4-0              # the generator may see nothing but the shots
synthaug generate MY_RECIPE --data data/shots-4-0 --out stores/variants-4-0
synthaug train dafusion_resnet50 --work-dir runs/4-0 --cfg-options synthaug.mix.store=stores/variants-4-0 model.head.num_classes=20 \
    train_dataloader.dataset.data_root=data/train train_dataloader.dataset.shots=4 train_dataloader.dataset.seed=0 \
    val_dataloader.dataset.data_root=data/train val_dataloader.dataset.shots=4 val_dataloader.dataset.seed=0 \
    test_dataloader.dataset.data_root=data/test randomness.seed=0

The baseline on real images: synthaug.mix=None. Published: 1, 2, 4, 8 and 16 shots, seeds 0 to 7; alpha 0.3, 0.5 and 0.7.
`synthaug compare dafusion` does all of it at once, from learning the words on.

As published: batch 32, 10,000 steps (50 times 200), images drawn with replacement, Adam with lr 1e-4, no decay, no schedule, 256 x 256 pixels, flips,
rotations up to 15 degrees, the mean of per-class accuracies. Otherwise than in the official code: BatchNorm stays frozen with the trunk, ImageNet's
statistics normalise, the aspect ratio is kept, the checkpoint is chosen on validation images; dafusion_resnet50_paper_compat has its ways.
"""

max_iters = 10_000

model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        style='pytorch',
        frozen_stages=4,  # all of it: no gradient reaches the trunk, and its BatchNorm layers stay in eval mode
        # torchvision's weights fit MMPretrain's ResNet by name; its classifier `fc` is left out. 100 MB, kept in torch's cache.
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50.imagenet1k_v2'),
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=20, in_channels=2048, loss=dict(type='mmpretrain.CrossEntropyLoss')),
)
# ImageNet's statistics, in RGB, as the trunk was trained.
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=256, edge='short'),
    dict(type='mmpretrain.CenterCrop', crop_size=256),
]
train_pipeline = [
    *_square,
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    # U(-15, 15) degrees. What comes into view has ImageNet's mean colour (B, G, R), zero after normalisation.
    dict(
        type='mmpretrain.Rotate',
        magnitude_range=(0, 15),
        magnitude_std='inf',
        prob=1.0,
        random_negative_prob=0.5,
        interpolation='bilinear',
        pad_val=(104, 116, 124),
    ),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [*_square, dict(type='mmpretrain.PackInputs')]


def _loader(batch_size, sampler, dataset, pipeline):
    return dict(batch_size=batch_size, num_workers=4, persistent_workers=True, sampler=sampler, dataset=dict(**dataset, pipeline=pipeline))


_in_order = dict(type='mmengine.DefaultSampler', shuffle=False)
train_dataloader = _loader(
    32,
    dict(type='synthaug_plugins.ReplacementSampler'),
    dict(type='synthaug_plugins.FewShotDataset', data_root='data/train', shots=16, seed=0),
    train_pipeline,
)
# The images to choose on are none of the shots: min(shots, 4) per class. Where there is a folder of them, write
# dict(type='mmpretrain.CustomDataset', data_root='data/val').
val_dataloader = _loader(64, _in_order, dict(type='synthaug_plugins.FewShotDataset', data_root='data/train', shots=16, seed=0, part='val'), test_pipeline)
test_dataloader = _loader(64, _in_order, dict(type='mmpretrain.CustomDataset', data_root='data/test'), test_pipeline)
# single-label/recall is the mean of per-class accuracies; thrs=None: the arg max alone decides, as for top-1.
val_evaluator = [
    dict(type='mmpretrain.Accuracy', topk=(1,)),
    dict(type='mmpretrain.SingleLabelMetric', items=('recall',), average='macro', thrs=None),
]
test_evaluator = val_evaluator

# Each drawn image is a variant of itself with probability alpha, independently of all others (eqs. 7-8).
synthaug = dict(mix=dict(store='stores/dafusion', mode='per_sample', alpha=0.5, partner='source'))

optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4, weight_decay=0))
param_scheduler = []
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=200)
val_cfg = dict()
test_cfg = dict()

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=100),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', by_epoch=False, interval=2000, save_best='single-label/recall', rule='greater', max_keep_ckpts=1),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo'))
log_processor = dict(by_epoch=False)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
