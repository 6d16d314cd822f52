"""`inversion_cifar10` on 96 x 96 pixels: STL-10. The stem of the ResNet-18 has 7 x 7 pixels and stride 2, and nothing pools after it, as published.

The paper's other networks: inversion_stl10_vgg16, _mobilenet_v2, _shufflenet_v2, _efficientnet_b0 and _resnet50.
"""

_base_ = './_base_/inversion.py'

model = dict(backbone=dict(type='synthaug_plugins.UnpooledResNet'))
# Of STL-10's training images, in RGB.
data_preprocessor = dict(mean=[113.91, 112.15, 103.69], std=[66.38, 65.43, 69.18])

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=96, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=96),
]
_cut = [
    dict(type='mmpretrain.RandomCrop', crop_size=96, padding=96 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
_pack = [dict(type='mmpretrain.PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=[*_square, *_cut, *_pack]))
val_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
test_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
