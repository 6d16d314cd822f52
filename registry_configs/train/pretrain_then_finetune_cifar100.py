"""Pre-train on synthetic images of CIFAR-100's class names, then fine-tune on real ones (He et al., ICLR 2023, downstream-aware). Needs GPUs.

synthaug generate pretrain_cifar100 --out stores/pretraining
synthaug train pretrain_then_finetune_cifar100 --work-dir runs/cifar100

The stages lie in runs/cifar100/pretrain and /finetune; the second starts from the backbone of the first. Killed, the same command goes on. A value of a
stage on the command line: --cfg-options pretrain.train_cfg.max_epochs=30 finetune.train_dataloader.dataset.data_root=my/train

Begun from weights of real images, with the published lr:
    synthaug.stages.0.init=resnet50.pth pretrain.optim_wrapper.optimizer.lr=1e-5
"""

synthaug = dict(
    stages=[
        dict(name='pretrain', recipe='pretrain_resnet50_aware.py', synthaug=dict(train_on=dict(store='stores/pretraining'))),
        dict(name='finetune', recipe='finetune_cifar100.py'),
    ]
)
