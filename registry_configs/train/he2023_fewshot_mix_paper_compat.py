"""`he2023_fewshot_mix` as the official code of He et al. (ICLR 2023) runs it, its quirks by name. For its numbers, not for yours.

What differs from he2023_fewshot_mix:
- 128 real + 128 synthetic images in a step, not 32 + 512: its loaders of features ignore the batch sizes that the paper states;
- the learning rate is a sawtooth, since its length is counted in batches of 512 (SawtoothCosineLR);
- the best epoch is chosen on the TEST images: the accuracy that it reports is that of an oracle.

synthaug train he2023_fewshot_mix_paper_compat --work-dir runs/compat --cfg-options val_dataloader.dataset.data_root=data/test ...the rest as there
"""

_base_ = './he2023_fewshot_mix.py'
synthaug = dict(mix=dict(ratio=(1, 1)))
train_dataloader = dict(batch_size=128)
# The quirk: data_root is that of the test images.
val_dataloader = dict(dataset=dict(_delete_=True, type='mmpretrain.CustomDataset', data_root='data/test'))
param_scheduler = [dict(type='synthaug_plugins.SawtoothCosineLR', epochs=30, batches_per_counted=4, by_epoch=True, convert_to_iter_based=True)]
