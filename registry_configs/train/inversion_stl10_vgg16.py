"""`inversion_stl10` with VGG-16 with BatchNorm with its usual stem."""

_base_ = './inversion_stl10.py'

model = dict(backbone=dict(_delete_=True, type='mmpretrain.VGG', depth=16, norm_cfg=dict(type='BN')))
