"""`he2023_zeroshot` as the official code of He et al. (ICLR 2023) chooses: the best epoch on the TEST images. For its numbers, not for yours.

synthaug train he2023_zeroshot_paper_compat --work-dir runs/compat --cfg-options val_dataloader.dataset.data_root=data/test ...the rest as there
"""

_base_ = './he2023_zeroshot.py'
val_dataloader = dict(
    _delete_=True,
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='mmengine.DefaultSampler', shuffle=False),
    dataset=dict(type='mmpretrain.CustomDataset', data_root='data/test'),
)
val_cfg = dict(_delete_=True)
val_evaluator = [dict(type='mmpretrain.Accuracy', topk=(1,))]
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1', rule='greater'))
