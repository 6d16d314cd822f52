"""Downstream-agnostic pre-training of a ResNet-50 (He et al., ICLR 2023, section 4): a store of many classes, such as those of ImageNet-1K.

synthaug train pretrain_resnet50_agnostic --store stores/pretraining --work-dir runs/agnostic

As published: SGD with lr 0.2 and weight decay 1e-4, batch 512, 90 epochs, lr / 10 after every 30, random crops and flips; momentum 0.9 is the usual one.
Begun from weights of ImageNet-1K, the published lr is 0.001: optim_wrapper.optimizer.lr=0.001 \
    model.backbone.init_cfg="{'type': 'Pretrained', 'checkpoint': 'resnet50.pth', 'prefix': 'backbone.'}"
MMEngine loads what fits of a file and leaves the rest out; as a stage (`synthaug.stages`) with `init`, weights that do not fit are refused.
"""

_base_ = './_base_/pretrain_resnet50.py'

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='mmengine.MultiStepLR', by_epoch=True, milestones=[30, 60], gamma=0.1)]
