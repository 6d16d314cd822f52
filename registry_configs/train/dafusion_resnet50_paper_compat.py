"""`dafusion_resnet50` as the official code of DA-Fusion (ICLR 2024) trains, its quirks by name. For its numbers, not for yours.

What differs from dafusion_resnet50:
- the trunk's BatchNorm is in train mode though its weights are frozen: it normalises with each batch, and its running statistics follow the batches,
  synthetic images included (TrainModeBNHook);
- images are normalised with mean = std = 0.5, not with the statistics that the trunk was trained with;
- images are squashed to 256 x 256 pixels, so the aspect ratio is lost; rotation takes the nearest pixel and shows black corners;
- the best epoch is chosen on the images that it is reported on: the accuracy is that of an oracle. (The paper takes one epoch for all seeds, the best on
  average, of 6400 images drawn with replacement; here it is the best of each run, of all images once.)

synthaug train dafusion_resnet50_paper_compat --work-dir runs/compat --cfg-options val_dataloader.dataset.data_root=data/test ...the rest as there
"""

_base_ = './dafusion_resnet50.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
_square = [dict(type='mmpretrain.LoadImageFromFile'), dict(type='mmpretrain.Resize', scale=(256, 256), interpolation='bilinear')]
_turn = dict(type='mmpretrain.Rotate', magnitude_range=(0, 15), magnitude_std='inf', prob=1.0, random_negative_prob=0.5, interpolation='nearest', pad_val=0)
train_pipeline = [*_square, dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'), _turn, dict(type='mmpretrain.PackInputs')]
test_pipeline = [*_square, dict(type='mmpretrain.PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# The quirk: data_root is that of the test images.
val_dataloader = dict(dataset=dict(_delete_=True, type='mmpretrain.CustomDataset', data_root='data/test', pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

custom_hooks = [dict(type='synthaug_plugins.TrainModeBNHook')]
