"""`inversion_stl10` as the published code chooses: the best of 20 evaluations on the TEST images, so an oracle's. For its numbers, not for yours.

synthaug train inversion_stl10_paper_compat --work-dir runs/compat --cfg-options val_dataloader.dataset.data_root=data/test ...the rest as there

Any other recipe of this kind does the same where val_dataloader.dataset.data_root is the folder of the test images.
"""

_base_ = './inversion_stl10.py'

val_dataloader = dict(dataset=dict(data_root='data/test'))
