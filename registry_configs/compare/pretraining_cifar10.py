"""Does pre-training on synthetic images help where real ones are few? CIFAR-10, a small EDM of it, supervised and MoCo v2.

Forty minutes of two fast cores, over an hour of slow ones:

python tools/pretraining_data.py --packs PACKS --out runs/pretraining-data
synthaug compare pretraining_cifar10 --data runs/pretraining-data/cifar10 --out runs/pretraining --jobs 2

The data folder holds seen/, train/, val/ and test/, all disjoint. A denoiser learns the images of seen/ and makes a store; a narrow ResNet-18 is pre-trained
on the store and, for comparison, on seen/ itself, each time for as many steps; then it is fine-tuned on shots of train/, few or all. Killed, the same
command goes on. pretraining_cifar10_gpu is the same with models and lengths for a GPU.
"""

title = 'Pre-training on synthetic images, CIFAR-10, {shots} real images per class'
notes = [
    'Synthetic images are 16 x 16 pixels, enlarged for pre-training: half of the size of the real ones, as a CPU can learn to make them in half an hour.',
    'The denoiser learned 20,000 real images with their labels (seen/), four times as many as the largest fine-tuning has. It stands in for a web-scale model, '
    'and pre-training on these 20,000 images themselves is what its images can hope to come near to.',
    'All fine-tuning takes equal steps; so does all pre-training, which comes on top. from_scratch_longer is the control for that: pre-trained on the very '
    'images of its fine-tuning, for as many steps as the others.',
]

train = 'finetune_resnet_cifar10'
# Of each class: a few, and all that train/ holds.
shots = [20, 500]
# Each seed draws its own shots and starts head and order of images anew. Denoiser, store and pre-trained backbones are made once.
seeds = [0, 1, 2, 3]

# A quarter of the arithmetic: the first stage looks at every second pixel.
_narrow = {'model.backbone.strides': (2, 2, 2, 2), 'train_dataloader.num_workers': 1}
_finetuning = 400
cfg_options = {
    **_narrow,
    'val_dataloader.num_workers': 1,
    'test_dataloader.num_workers': 1,
    'train_cfg.max_iters': _finetuning,
    'train_cfg.val_interval': _finetuning // 4,
    'default_hooks.checkpoint.interval': _finetuning // 4,
    'param_scheduler.1.end': _finetuning,
}

_steps = 600
_length = {'train_cfg.max_iters': _steps, 'default_hooks.checkpoint.interval': _steps}
_supervised = {**_narrow, **_length, 'param_scheduler.1.end': _steps}
_mocov2 = {**_narrow, **_length, 'param_scheduler.0.end': _steps}
_on_store = {'synthaug': dict(train_on=dict(store='{store}'))}
_on_seen = {'train_dataloader.dataset.data_root': '{data}/seen'}

made = dict(
    supervised_real=dict(kind='training', recipe='pretrain_resnet_cifar10', cfg_options={**_supervised, **_on_seen}, once=True),
    mocov2_real=dict(kind='training', recipe='pretrain_mocov2_cifar10', cfg_options={**_mocov2, **_on_seen}, once=True),
    longer=dict(kind='training', recipe='pretrain_resnet_cifar10', cfg_options={**_supervised, 'train_dataloader.dataset.data_root': '{train}'}),
    denoiser=dict(kind='denoiser', recipe='edm_cifar10_small', cfg_options={'data': '{data}/seen'}, once=True),
    store=dict(
        kind='store',
        recipe='edm_cifar10',
        cfg_options={
            'generator.model': '{denoiser}',
            'generator.sampler': dict(num_steps=12, solver='dpmpp_2m'),
            'per_class': 1000,
            'batch_size': 125,
        },
        once=True,
    ),
    supervised_synthetic=dict(kind='training', recipe='pretrain_resnet_cifar10', cfg_options={**_supervised, **_on_store}, once=True),
    mocov2_synthetic=dict(kind='training', recipe='pretrain_mocov2_cifar10', cfg_options={**_mocov2, **_on_store}, once=True),
)


def _from(backbone):
    return dict(cfg_options={'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='{' + backbone + '}', prefix='backbone.')})


arms = dict(
    from_scratch=dict(),
    from_scratch_longer=_from('longer'),
    supervised_synthetic=_from('supervised_synthetic'),
    mocov2_synthetic=_from('mocov2_synthetic'),
    supervised_real=_from('supervised_real'),
    mocov2_real=_from('mocov2_real'),
)
reference = 'supervised_real'
