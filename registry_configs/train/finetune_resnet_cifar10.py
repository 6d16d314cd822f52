"""A narrow ResNet-18 on a few 32 x 32 images: from scratch, or from a backbone that was pre-trained on others. Two minutes on one core.

synthaug train finetune_resnet_cifar10 --work-dir runs/finetune --cfg-options train_dataloader.dataset.data_root=data/train \
    val_dataloader.dataset.data_root=data/val test_dataloader.dataset.data_root=data/test \
    "model.backbone.init_cfg=dict(type='Pretrained',checkpoint='runs/pretrain/iter_1000.pth',prefix='backbone.')"

`pretrain_resnet_cifar10` and `pretrain_mocov2_cifar10` train the same backbone. Without init_cfg it starts from nothing.
"""

_base_ = './_base_/resnet_cifar_small.py'

# Training takes max_iters steps of one batch each and goes round the images as often as that needs: few images and many take equal time.
max_iters = 600
warmup = 50

model = dict(
    type='mmpretrain.ImageClassifier',
    head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='mmpretrain.CrossEntropyLoss')),
)
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=10)

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=32, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=32),
]
train_pipeline = [
    *_square,
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=32 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [*_square, dict(type='mmpretrain.PackInputs')]


def _loader(batch_size, sampler, folder, pipeline):
    dataset = dict(type='mmpretrain.CustomDataset', data_root=folder, pipeline=pipeline)
    return dict(batch_size=batch_size, num_workers=2, persistent_workers=True, sampler=sampler, dataset=dataset)


_in_order = dict(type='mmengine.DefaultSampler', shuffle=False)
train_dataloader = _loader(64, dict(type='mmengine.InfiniteSampler', shuffle=True), 'data/train', train_pipeline)
val_dataloader = _loader(256, _in_order, 'data/val', test_pipeline)
test_dataloader = _loader(256, _in_order, 'data/test', test_pipeline)
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]
test_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
    dict(type='mmengine.CosineAnnealingLR', by_epoch=False, begin=warmup, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters // 4)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 4, save_best='accuracy/top1', rule='greater', max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
