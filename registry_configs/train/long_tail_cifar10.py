"""A long-tailed CIFAR-10: a ResNet-18 from scratch on real images and what fills their classes up. `synthaug compare long_tail_cifar10` trains it.

synthaug shots data/cifar10/train --shots 4500 --imbalance 100 --seed 0 --out data/long-tail
synthaug generate oversampling --data data/long-tail --out stores/fill
synthaug train long_tail_cifar10 --work-dir runs/long-tail --cfg-options synthaug.mix.store=stores/fill \
    train_dataloader.dataset.data_root=data/long-tail val_dataloader.dataset.data_root=data/val test_dataloader.dataset.data_root=data/test

Network, optimiser and pipelines are those of inversion_cifar10. 20,000 steps of 128 images are some 230 rounds of the 11,167 images above. Real and synthetic
images lie in one bowl (mode='concat'): with a store that fills every class up to the largest, a batch is balanced. The baseline: synthaug.mix=None.
"""

_base_ = './inversion_cifar10.py'

max_iters = 20_000
warmup = 500
synthaug = dict(mix=dict(_delete_=True, store='stores/fill', mode='concat'))
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
    dict(type='mmengine.CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=warmup, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 20)
default_hooks = dict(checkpoint=dict(interval=max_iters // 20))
