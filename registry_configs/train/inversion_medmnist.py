"""`inversion_cifar10` on a set of MedMNIST, 28 x 28 pixels: PathMNIST's nine classes.

BloodMNIST: model.head.num_classes=8 data_preprocessor.num_classes=8; DermaMNIST: 7 in both.
"""

_base_ = './inversion_cifar10.py'

model = dict(head=dict(num_classes=9))
data_preprocessor = dict(num_classes=9, mean=[127.5] * 3, std=[127.5] * 3)

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=28, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=28),
]
_cut = [
    dict(type='mmpretrain.RandomCrop', crop_size=28, padding=28 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
_pack = [dict(type='mmpretrain.PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=[*_square, *_cut, *_pack]))
val_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
test_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
