"""CIFAR-100 after pre-training, a ResNet-50 (He et al., ICLR 2023, section 4): 200 epochs on real images.

synthaug train pretrain_then_finetune_cifar100 --work-dir runs/cifar100    # pre-trains on a store before
synthaug train finetune_cifar100 --work-dir runs/real --cfg-options \
    model.backbone.init_cfg="dict(type='Pretrained', checkpoint='runs/aware/epoch_90.pth', prefix='backbone.')"

As published: SGD with lr 0.003, a fifth of it from epochs 60, 120 and 160 on, batch 128, weight decay 5e-4. The paper does not say at which size images
are shown, how they are augmented, or the momentum: 224 pixels as in pre-training, crops padded by an eighth, flips and 0.9 are ours.
"""

_base_ = './_base_/pretrain_resnet50.py'

max_epochs = 200
synthaug = None  # the base trains on a store

model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100)

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=224, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=224),
]
_cut = [
    dict(type='mmpretrain.RandomCrop', crop_size=224, padding=224 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
_pack = [dict(type='mmpretrain.PackInputs')]


def _held_out(folder):
    return dict(
        batch_size=128,
        num_workers=8,
        persistent_workers=True,
        sampler=dict(type='mmengine.DefaultSampler', shuffle=False),
        dataset=dict(type='mmpretrain.CustomDataset', data_root=folder, pipeline=[*_square, *_pack]),
    )


# The batch of one process.
train_dataloader = dict(batch_size=128, drop_last=False, dataset=dict(pipeline=[*_square, *_cut, *_pack]))
val_dataloader = _held_out('data/val')
test_dataloader = _held_out('data/test')
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1, 5))]
test_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1, 5))]

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.003, momentum=0.9, weight_decay=5e-4))
param_scheduler = [dict(type='mmengine.MultiStepLR', by_epoch=True, milestones=[60, 120, 160], gamma=0.2)]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1', rule='greater'))
