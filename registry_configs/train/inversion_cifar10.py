"""The classifier of Diffusion Inversion (Zhou et al., 2023) on 32 x 32 pixels: a ResNet-18 from scratch on real and synthetic CIFAR-10.

synthaug learn embeddings inversion_cifar10 --data data/train --out embeddings/cifar10
synthaug generate inversion_cifar10 --data data/train --out stores/inversion
synthaug train inversion_cifar10 --work-dir runs/cifar10 --cfg-options synthaug.mix.store=stores/inversion \
    train_dataloader.dataset.data_root=data/train val_dataloader.dataset.data_root=data/val test_dataloader.dataset.data_root=data/test

The baseline on real images: synthaug.mix=None; on synthetic ones alone: "synthaug.mix.ratio=(0, 1)". `synthaug compare inversion` does all of it at once.

As published: SGD with lr 0.1, momentum 0.9, weight decay 5e-4, batch 128, 50,000 steps, warm-up from lr / 1000 over 1000 steps and cosine to lr / 1000,
crops padded by an eighth, flips, 20 evaluations. The best of them is chosen on validation images; the published code takes it on the test images
(inversion_stl10_paper_compat). Half of a batch is real: that share is a choice of ours.
"""

_base_ = './_base_/inversion.py'

# Of CIFAR-10's training images, in RGB.
data_preprocessor = dict(mean=[125.31, 122.95, 113.87], std=[62.99, 62.09, 66.7])

_square = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=32, edge='short', interpolation='bicubic'),
    dict(type='mmpretrain.CenterCrop', crop_size=32),
]
_cut = [
    dict(type='mmpretrain.RandomCrop', crop_size=32, padding=32 // 8),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
]
_pack = [dict(type='mmpretrain.PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=[*_square, *_cut, *_pack]))
val_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
test_dataloader = dict(dataset=dict(pipeline=[*_square, *_pack]))
