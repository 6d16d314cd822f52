"""`inversion_stl10` on 64 x 64 pixels: EuroSAT from scratch. (The paper tunes a CLIP on EuroSAT, with the code of He et al.: he2023_fewshot_mix.)"""

_base_ = './inversion_stl10.py'

# Of EuroSAT's images, in RGB.
data_preprocessor = dict(mean=[87.82, 96.97, 103.98], std=[51.9, 34.8, 29.3])

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=64, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=64),
]
_cut = [
    dict(type='mmpretrain.RandomCrop', crop_size=64, padding=64 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
_pack = [dict(type='mmpretrain.PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=[*_square, *_cut, *_pack]))
val_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
test_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
