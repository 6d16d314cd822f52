"""Stages at the size of a toy: a small network learns from synthetic digits, and then from a few real ones. Seconds on one core.

synthaug generate edm_digits --out stores/digits \
    --cfg-options "classes=['eight','five','four','nine','one','seven','six','three','two','zero']" per_class=50
synthaug train pretrain_then_finetune_digits --work-dir runs/digits --cfg-options finetune.train_dataloader.dataset.data_root=data/digits/train \
    finetune.val_dataloader.dataset.data_root=data/digits/val

Killed, the same command goes on: what is finished is not trained again. The two trainings for another launcher, a file each:
synthaug explain pretrain_then_finetune_digits --out explicit
"""

synthaug = dict(
    stages=[
        dict(name='pretrain', recipe='pretrain_resnet_digits.py', synthaug=dict(train_on=dict(store='stores/digits'))),
        dict(name='finetune', recipe='digits_resnet.py'),
    ]
)
