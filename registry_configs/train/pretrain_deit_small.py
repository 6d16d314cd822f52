"""Pre-training of a DeiT-S on synthetic images (He et al., ICLR 2023, section 4): MMPretrain's own recipe, with a store in the place of ImageNet.

torchrun --nproc-per-node 4 -m synthaug_plugins.cli train pretrain_deit_small --store stores/pretraining --work-dir runs/deit --launcher pytorch

The paper takes DeiT's own settings and changes the data alone: AdamW, lr 0.001 for batches of 1024 (256 on each of 4 processes; for other batches
lr = 5e-4 * batch / 512), weight decay 0.05, 300 epochs, RandAugment, Mixup and CutMix.
"""

_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

synthaug = dict(train_on=dict(store='stores/pretraining', num_classes='store', validate=False))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
