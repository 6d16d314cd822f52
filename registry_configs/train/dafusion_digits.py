"""The training of DA-Fusion at the size of a toy: a few real digits and variants of them, about 3 s on one core. Set folders and store as in digits_resnet.

synthaug train dafusion_digits --work-dir runs/digits --cfg-options synthaug.mix.store=stores/variants ...the three folders

As in dafusion_resnet50: images drawn with replacement, each replaced by a variant of itself with probability alpha, rotations up to 15 degrees, the mean
of per-class accuracies. Otherwise: no flips, since they make other digits; and the whole of a small network learns from nothing, since no
trunk is there that knows digits without having seen their labels.
"""

_base_ = './digits_resnet.py'

train_pipeline = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.Rotate', magnitude_range=(0, 15), magnitude_std='inf', prob=1.0, random_negative_prob=0.5, interpolation='bilinear', pad_val=0),
    dict(type='mmpretrain.RandomCrop', crop_size=8, padding=1),
    dict(type='mmpretrain.PackInputs'),
]
train_dataloader = dict(sampler=dict(_delete_=True, type='synthaug_plugins.ReplacementSampler'), dataset=dict(pipeline=train_pipeline))
val_evaluator = [
    dict(type='mmpretrain.Accuracy', topk=(1,)),
    dict(type='mmpretrain.SingleLabelMetric', items=('recall',), average='macro', thrs=None),
]
test_evaluator = val_evaluator
synthaug = dict(mix=dict(store='stores/dafusion', mode='per_sample', alpha=0.5, partner='source'))
default_hooks = dict(checkpoint=dict(save_best='single-label/recall', rule='greater'))
