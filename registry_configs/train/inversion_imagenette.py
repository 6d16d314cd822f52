"""`inversion_stl10` on 256 x 256 pixels: ImageNette, with the usual stem of a ResNet-18."""

_base_ = './inversion_stl10.py'

model = dict(backbone=dict(type='mmpretrain.ResNet'))
# ImageNet's, in RGB.
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=256, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=256),
]
_cut = [
    dict(type='mmpretrain.RandomCrop', crop_size=256, padding=256 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
_pack = [dict(type='mmpretrain.PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=[*_square, *_cut, *_pack]))
val_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
test_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
