"""Supervised pre-training of a narrow ResNet-18 on 32 x 32 images. Ten minutes on one core.

synthaug train pretrain_resnet_cifar10 --store stores/cifar10 --work-dir runs/supervised

On real images: train_dataloader.dataset.data_root=data/train in place of the store. `pretrain_mocov2_cifar10` trains the same backbone without labels, as
many steps of as many images.

SGD with lr 0.1, momentum 0.9 and weight decay 5e-4, batch 128, a short warm-up and a cosine to nothing; crops padded by an eighth, flips. The labels of a
store are those of the recipe's head; for other classes than CIFAR-10's add synthaug.train_on.num_classes=store.
"""

_base_ = './_base_/resnet_cifar_small.py'

# Training takes max_iters steps of one batch each and goes round the images as often as that needs: few images and many take equal time.
max_iters = 1000
warmup = 50
batch_size = 128

model = dict(
    type='mmpretrain.ImageClassifier',
    head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='mmpretrain.CrossEntropyLoss')),
)
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=10)

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
            dict(type='mmpretrain.ResizeEdge', scale=32, edge='short', interpolation='bicubic'),
            dict(type='mmpretrain.CenterCrop', crop_size=32),
            dict(type='mmpretrain.RandomCrop', crop_size=32, padding=32 // 8),
            dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
    dict(type='mmengine.CosineAnnealingLR', by_epoch=False, begin=warmup, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 5, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
