"""MoCo v2 (Chen et al., 2020) of a ResNet-50 on a store, as He et al. (ICLR 2023) pre-train on synthetic images. Labels are not used.

synthaug generate pretrain_imagenet1k --out stores/pretrain_imagenet1k
synthaug train pretrain_mocov2 --work-dir runs/mocov2 --launcher pytorch      # under torchrun, 8 processes with a batch of 32 each

The algorithm, its transforms and its hyper-parameters are MMPretrain's own recipe, which has the original's: 65,536 keys, momentum 0.999, temperature
0.2, SGD with lr 0.03 for a batch of 256, cosine over 200 epochs. The learning rate follows the batch of all processes.

From weights of real images (the paper: lr 0.003, all else the same):
    --cfg-options optim_wrapper.optimizer.lr=0.003 model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE_OR_torchvision://resnet50
With a file of MMPretrain add model.backbone.init_cfg.prefix=backbone. Real images beside the synthetic ones: `mix` on a recipe of real images, see README.
"""

_base_ = 'mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='synthaug_plugins.StoreDataset',
        store='stores/pretrain_imagenet1k',
        pipeline={{_base_.train_pipeline}},
    )
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
