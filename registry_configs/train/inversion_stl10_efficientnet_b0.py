"""`inversion_stl10` with EfficientNet-B0 with its usual stem."""

_base_ = './inversion_stl10.py'

model = dict(backbone=dict(_delete_=True, type='mmpretrain.EfficientNet', arch='b0'), head=dict(in_channels=1280))
