"""`inversion_stl10` with ShuffleNetV2 of half width with its usual stem."""

_base_ = './inversion_stl10.py'

model = dict(backbone=dict(_delete_=True, type='mmpretrain.ShuffleNetV2', widen_factor=0.5), head=dict(in_channels=1024))
