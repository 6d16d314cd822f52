"""The supervised half of `pretraining_cifar10` with models and lengths for one GPU: images of 32 pixels, a wide ResNet-18. About ten minutes of an H200.

python tools/pretraining_data.py --packs PACKS --out runs/pretraining-data
synthaug compare pretraining_cifar10_gpu --data runs/pretraining-data/cifar10 --out runs/pretraining-gpu --jobs 8

MoCo v2, for which 1,500 steps are few, is left to the smaller study.
"""

_base_ = './pretraining_cifar10.py'

seeds = [0, 1]

# The generator works at the full 32 pixels.
notes = [
    'The denoiser learned 20,000 real images with their labels (seen/), four times as many as the largest fine-tuning has. It stands in for a web-scale model, '
    'and pre-training on these 20,000 images themselves is what its images can hope to come near to.',
    'All fine-tuning takes equal steps; so does all pre-training, which comes on top. from_scratch_longer is the control for that: pre-trained on the very '
    'images of its fine-tuning, for as many steps as the others.',
]

# The full network of the recipes' kind: 11 million parameters, all pixels.
_classifier = {
    'model.backbone.strides': (1, 2, 2, 2),
    'model.backbone.stem_channels': 64,
    'model.backbone.base_channels': 64,
    'model.head.in_channels': 512,
}
_finetuning = 1000
cfg_options = {
    **_classifier,
    'train_cfg.max_iters': _finetuning,
    'train_cfg.val_interval': _finetuning // 4,
    'default_hooks.checkpoint.interval': _finetuning // 4,
    'param_scheduler.1.end': _finetuning,
}

_steps = 1500
_longer_trained = dict(
    cfg_options={
        **_classifier,
        'train_dataloader.num_workers': 8,
        'train_cfg.max_iters': _steps,
        'default_hooks.checkpoint.interval': _steps,
        'param_scheduler.1.end': _steps,
    }
)
made = dict(
    # A sixth of EDM's network for CIFAR-10, and little training: half a million images, seen one by one.
    denoiser=dict(
        recipe='edm_cifar10',
        cfg_options={
            'model.label_dropout': 0.1,
            'model.network.channels': 96,
            'model.network.channel_mult': (1, 2, 2),
            'model.network.blocks_per_level': 2,
            'model.network.dropout': 0.0,
            'augment': None,
            'training.images_shown': 500_000,
            'training.batch_size': 256,
            'training.warmup_images': 10_000,
            'training.ema_half_life_images': 20_000,
            'training.precision': 'bf16',
            'samples.every': 500_000,
        },
    ),
    store=dict(cfg_options={'generator.precision': 'bf16', 'per_class': 2000, 'batch_size': 500}),
    supervised_synthetic=_longer_trained,
    supervised_real=_longer_trained,
    longer=_longer_trained,
)
arms = dict(
    _delete_=True,
    from_scratch={{_base_.arms.from_scratch}},
    from_scratch_longer={{_base_.arms.from_scratch_longer}},
    supervised_synthetic={{_base_.arms.supervised_synthetic}},
    supervised_real={{_base_.arms.supervised_real}},
)
