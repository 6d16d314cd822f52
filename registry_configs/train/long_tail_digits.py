"""Digits of which some classes have few images: the classifier of the demo on real images and what fills them up. About 4 s on one core.

synthaug shots data/digits/train --shots 60 --imbalance 20 --out data/long-tail
synthaug generate long_tail_digits_edm --data data/long-tail --out stores/fill
synthaug train long_tail_digits --work-dir runs/long-tail --cfg-options synthaug.mix.store=stores/fill \
    train_dataloader.dataset.data_root=data/long-tail ...the two other folders, see digits_resnet

Real and synthetic images lie in one bowl (mode='concat'): with a store that fills every class up to the largest, a batch is balanced. Training counts
steps, so arms with more images and with fewer take equal time. The baseline on real images alone: synthaug.mix=None. The mean of per-class accuracies
chooses the checkpoint, since images of the large classes would.
"""

_base_ = './digits_resnet.py'

synthaug = dict(mix=dict(store='stores/fill', mode='concat'))
val_evaluator = [
    dict(type='mmpretrain.Accuracy', topk=(1,)),
    dict(type='mmpretrain.SingleLabelMetric', items=('recall',), average='macro', thrs=None),
]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='single-label/recall', rule='greater'))
