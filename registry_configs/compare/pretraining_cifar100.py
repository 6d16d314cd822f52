"""What the backbones of `pretraining_cifar10` bring to classes that nothing had seen: a few images per class of CIFAR-100. 22 minutes of two cores.

python tools/pretraining_data.py --packs PACKS --out runs/pretraining-data
synthaug compare pretraining_cifar10 --data runs/pretraining-data/cifar10 --out runs/pretraining --jobs 2
synthaug compare pretraining_cifar100 --data runs/pretraining-data/cifar100 --set pretraining=runs/pretraining --out runs/pretraining-transfer --jobs 2

Generator and backbones knew CIFAR-10's ten classes only, so this is the downstream-agnostic case of He et al. (ICLR 2023), at its smallest.
"""

_base_ = './pretraining_cifar10.py'

# Where that comparison lies.
values = dict(pretraining='runs/pretraining')
title = 'Pre-training on synthetic CIFAR-10, then CIFAR-100, {shots} real images per class'
notes = [
    'No image and no class of CIFAR-100 was seen by the denoiser or in pre-training, but for from_scratch_longer: pre-trained on the very images of its '
    'fine-tuning, for as many steps as the others.',
    'Backbones are those of pretraining_cifar10: one of each kind, so that seeds differ in shots and fine-tuning only.',
]
# Of each class: a few, and all that the pack has beside 4 for validation.
shots = [4, 12]
seeds = [0, 1, 2, 3]
made = dict(longer=dict(cfg_options={'model.head.num_classes': 100, 'data_preprocessor.num_classes': 100}))


def _from(backbone):
    return dict(cfg_options={'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=backbone, prefix='backbone.')})


arms = dict(
    _delete_=True,
    from_scratch=dict(),
    from_scratch_longer=_from('{longer}'),
    **{name: _from('{pretraining}/made/' + name + '/backbone.pth') for name in ('supervised_synthetic', 'mocov2_synthetic', 'supervised_real', 'mocov2_real')},
)
