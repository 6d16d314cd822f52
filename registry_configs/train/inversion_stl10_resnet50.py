"""`inversion_stl10` with a ResNet-50 of the same stem."""

_base_ = './inversion_stl10.py'

model = dict(backbone=dict(depth=50), head=dict(in_channels=2048))
