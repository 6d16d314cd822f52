"""Supervised pre-training at the size of a toy: the network of `digits_resnet` on synthetic digits alone. Some seconds on one core.

synthaug generate edm_digits --out stores/digits \
    --cfg-options "classes=['eight','five','four','nine','one','seven','six','three','two','zero']" per_class=50
synthaug train pretrain_resnet_digits --store stores/digits --work-dir runs/digits

The last step counts, since no real image is there to choose by. With real digits at hand, see how it does on them; folders are labelled in the order of
their names, hence the classes above:
synthaug test pretrain_resnet_digits runs/digits/iter_200.pth --work-dir runs/digits-test \
    --cfg-options synthaug.train_on.store=stores/digits test_dataloader.dataset.data_root=data/digits/test
"""

_base_ = './digits_resnet.py'

synthaug = dict(train_on=dict(store='stores/digits'))
val_dataloader = None
val_cfg = None
val_evaluator = None
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=200)
default_hooks = dict(checkpoint=dict(_delete_=True, type='mmengine.CheckpointHook', by_epoch=False, interval=200))
