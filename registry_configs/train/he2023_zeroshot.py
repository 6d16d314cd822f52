"""Tuning on synthetic images alone (He et al., ICLR 2023, section 3): no real image is used, and none is there to choose an epoch on, so the last one counts.

synthaug generate he2023_zeroshot_eurosat --out stores/lecf       # LE + CF; he2023_le_... for LE, he2023_basic_... for B
synthaug train he2023_zeroshot --work-dir runs/zeroshot --cfg-options train_dataloader.dataset.store=stores/lecf \
    test_dataloader.dataset.data_root=data/test synthaug.clip.dataset=eurosat

AdamW, lr 2e-3, weight decay 0.1, batch 512, cosine, 30 epochs, gradients clipped at norm 1, as published.
The paper trains on 800 images per class of those that the filter kept, the best first where there are fewer; that is
train_dataloader.dataset.select="{'where': 'clip_p > 1/10', 'sample': 800}" for 10 classes.
"""

_base_ = './he2023_fewshot_real.py'
train_dataloader = dict(batch_size=512, dataset=dict(_delete_=True, type='synthaug_plugins.StoreDataset', store='stores/he2023_zeroshot'))
val_dataloader = None
val_cfg = None
val_evaluator = None
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(_delete_=True, type='mmengine.CheckpointHook', interval=1, max_keep_ckpts=1))
