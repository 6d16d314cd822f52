"""`inversion_cifar10` in a tenth of the steps, for a small machine. The same lines make any other recipe of this kind short."""

_base_ = './inversion_cifar10.py'

max_iters = 5000
warmup = 100
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
    dict(type='mmengine.CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=warmup, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 20)
default_hooks = dict(checkpoint=dict(interval=max_iters // 20))
