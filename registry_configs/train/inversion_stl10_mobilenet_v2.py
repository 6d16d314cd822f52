"""`inversion_stl10` with MobileNetV2 with its usual stem."""

_base_ = './inversion_stl10.py'

model = dict(backbone=dict(_delete_=True, type='mmpretrain.MobileNetV2'), head=dict(in_channels=1280))
