"""Downstream-aware pre-training of a ResNet-50 (He et al., ICLR 2023, section 4): a store made from the class names of the task that comes after.

synthaug train pretrain_resnet50_aware --store stores/pretraining --work-dir runs/aware

As published: AdamW with lr 1e-4 and weight decay 0.9, batch 512, 90 epochs, cosine, random crops and flips. Begun from weights of ImageNet-1K, the
published lr is 1e-5: optim_wrapper.optimizer.lr=1e-5 \
    model.backbone.init_cfg="{'type': 'Pretrained', 'checkpoint': 'resnet50.pth', 'prefix': 'backbone.'}"
MMEngine loads what fits of a file and leaves the rest out; as a stage (`synthaug.stages`) with `init`, weights that do not fit are refused.

The paper does not say the size of the crops; 224 is ours. The cosine is taken step by step.
"""

_base_ = './_base_/pretrain_resnet50.py'

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.9))
param_scheduler = [dict(type='mmengine.CosineAnnealingLR', by_epoch=True, begin=0, end=90, convert_to_iter_based=True)]
