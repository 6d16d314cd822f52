"""MoCo v2 (Chen et al., 2020) of a narrow ResNet-18 on 32 x 32 images: pre-training that needs no labels. About 20 minutes on one core.

synthaug train pretrain_mocov2_cifar10 --store stores/cifar10 --work-dir runs/mocov2

On real images: train_dataloader.dataset.data_root=data/train in place of the store. Real and synthetic ones together: --mix stores/cifar10 beside it.

Smaller than the original (`pretrain_mocov2`) as small images and short trainings want it: a queue of 4096 keys, momentum 0.99 for the key encoder and no
blur. The batch is 128 and not 256; learning rate 0.03, cosine, temperature 0.2 and the other transforms are the original's. Checkpoints hold the encoder
under `backbone.`, which a fine-tuning begins from.
"""

_base_ = './_base_/resnet_cifar_small.py'

# Training takes max_iters steps of one batch each and goes round the images as often as that needs: few images and many take equal time.
max_iters = 1000
batch_size = 128

model = dict(
    type='mmpretrain.MoCo',
    queue_len=4096,  # a multiple of the batch of all processes together
    feat_dim=128,
    momentum=0.01,  # of MMPretrain: what the key encoder takes of the other in each step
    neck=dict(_delete_=True, type='mmpretrain.MoCoV2Neck', in_channels=128, hid_channels=128, out_channels=128, with_avg_pool=True),
    head=dict(type='mmpretrain.ContrastiveHead', loss=dict(type='mmpretrain.CrossEntropyLoss'), temperature=0.2),
)
data_preprocessor = dict(type='mmpretrain.SelfSupDataPreprocessor')

_view = [
    dict(type='mmpretrain.RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0), backend='pillow'),
    dict(
        type='mmcv.RandomApply',
        transforms=[dict(type='mmpretrain.ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
        prob=0.8,
    ),
    dict(type='mmcv.RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='mmcv.RandomFlip', prob=0.5),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='mmengine.InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='data/train',
        pipeline=[
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmpretrain.MultiView', num_views=2, transforms=[_view]),
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='mmengine.CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters)]
train_cfg = dict(by_epoch=False, max_iters=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 5, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
