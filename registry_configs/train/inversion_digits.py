"""The training of Diffusion Inversion at the size of a toy: real digits and synthetic ones, about 3 s on one core. Set folders and store as in digits_resnet.

synthaug train inversion_digits --work-dir runs/digits --cfg-options synthaug.mix.store=stores/inversion ...the three folders

As in inversion_cifar10: half of a batch is real, half is synthetic; SGD, warm-up and cosine; crops padded by an eighth. No flips, since they make other
digits.
"""

_base_ = './digits_resnet.py'

max_iters = 200
warmup = 20
synthaug = dict(mix=dict(store='stores/inversion', mode='per_batch', ratio=(1, 1), partner='any'))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup),
    dict(type='mmengine.CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=warmup, end=max_iters),
]
