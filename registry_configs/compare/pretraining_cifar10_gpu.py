"""The study of `pretraining_cifar10` with models and lengths for one GPU: EDM's own CIFAR-10 network, more images, longer trainings. About a day of an H100.

python tools/pretraining_data.py --packs PACKS --out runs/pretraining-data --all-test
synthaug compare pretraining_cifar10_gpu --data runs/pretraining-data/cifar10 --out runs/pretraining-gpu

It has not been run; sizes and lengths are guesses.
"""

# The generator works at the full 32 pixels.
_base_ = './pretraining_cifar10.py'

notes = [
    'The denoiser learned 20,000 real images with their labels (seen/), four times as many as the largest fine-tuning has. It stands in for a web-scale model, '
    'and pre-training on these 20,000 images themselves is what its images can hope to come near to.',
    'All fine-tuning takes equal steps; so does all pre-training, which comes on top. from_scratch_longer is the control for that: pre-trained on the very '
    'images of its fine-tuning, for as many steps as the others.',
]
shots = [5, 20, 100, 500]
seeds = [0, 1, 2]

# The full network of the recipes' kind: 11 million parameters, all pixels.
_wide = {
    'model.backbone.strides': (1, 2, 2, 2),
    'model.backbone.stem_channels': 64,
    'model.backbone.base_channels': 64,
    'train_dataloader.num_workers': 8,
}
_classifier = {**_wide, 'model.head.in_channels': 512}
cfg_options = {
    **_classifier,
    'val_dataloader.num_workers': 4,
    'test_dataloader.num_workers': 4,
    'train_cfg.max_iters': 5000,
    'train_cfg.val_interval': 500,
    'param_scheduler.1.end': 5000,
}

_steps = 40_000
_length = {'train_cfg.max_iters': _steps, 'default_hooks.checkpoint.interval': _steps // 10}
_supervised = dict(cfg_options={**_classifier, **_length, 'param_scheduler.1.end': _steps})
_mocov2 = dict(cfg_options={**_wide, **_length, 'model.neck.in_channels': 512, 'model.neck.hid_channels': 512, 'param_scheduler.0.end': _steps})
made = dict(
    # Half the images of a full training: 20,000 real ones are few.
    denoiser=dict(recipe='edm_cifar10', cfg_options={'training.images_shown': 50_000_000, 'training.precision': 'bf16'}),
    store=dict(
        cfg_options={
            'generator.sampler': dict(_delete_=True, preset='edm', S_churn=0),
            'generator.precision': 'bf16',
            'per_class': 10_000,
            'batch_size': 500,
        },
    ),
    supervised_synthetic=_supervised,
    mocov2_synthetic=_mocov2,
    supervised_real=_supervised,
    mocov2_real=_mocov2,
    longer=_supervised,
)
