"""StableRep (Tian et al., NeurIPS 2023): a ViT-B/16 learns, without labels, that images of one prompt belong together.

synthaug generate pretrain_imagenet1k --out stores/pretrain_imagenet1k
synthaug train pretrain_multi_positive --work-dir runs/multi-positive --launcher pytorch      # under torchrun

Every image of the store needs its prompt, and a prompt several images: of a text-to-image recipe, set generator.images_per_prompt=10 or ask for several
times as many images as there are sentences. The paper's images are of Stable Diffusion 1.5 with guidance_scale=2.0, 10 of each caption.

As published: 6 images of each prompt, 43 prompts on each of 32 GPUs; temperature 0.1; a projection of three layers, 4096 wide, to 256 numbers; AdamW with
base lr 2e-4 (here for 8,256 images: 2e-4 * 8256 / 256 / 2, since each image is seen in one view), betas 0.9 and 0.98, weight decay 0.1; half an epoch of
warm-up, cosine to 0. The learning rate follows the batch of all processes. 15 epochs of 8.3 million prompts are 90,000 steps; with fewer prompts train
for more epochs. The published code also scales 5 % of the images down to 64 or 128 pixels and up again, or not; here they stay.
"""

images_per_prompt = 6
prompts_per_batch = 43  # of each process; a batch of all processes together should hold a thousand prompts or so
max_epochs = 15

model = dict(
    type='synthaug_plugins.MultiPositive',
    backbone=dict(type='mmpretrain.VisionTransformer', arch='b', img_size=224, patch_size=16),
    neck=dict(
        type='mmpretrain.NonLinearNeck',
        in_channels=768,
        hid_channels=4096,
        out_channels=256,
        num_layers=3,
        with_bias=True,
        with_last_bn=False,
        with_last_bias=True,
        with_avg_pool=False,
    ),
    head=dict(type='synthaug_plugins.MultiPositiveHead', temperature=0.1),
)
data_preprocessor = dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_dataloader = dict(
    batch_size=prompts_per_batch * images_per_prompt,
    num_workers=14,
    persistent_workers=True,
    sampler=dict(type='mmengine.DefaultSampler', shuffle=True),  # lends its seed and epoch; the next line composes the batches
    batch_sampler=dict(type='synthaug_plugins.PromptGroupSampler', images_per_prompt=images_per_prompt),
    dataset=dict(
        type='synthaug_plugins.PromptDataset',
        store='stores/pretrain_imagenet1k',
        pipeline=[
            dict(type='mmpretrain.LoadImageFromFile'),
            dict(type='mmpretrain.RandomResizedCrop', scale=224, crop_ratio_range=(0.08, 1.0), backend='pillow'),
            dict(
                type='mmcv.RandomApply',
                transforms=[dict(type='mmpretrain.ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
                prob=0.8,
            ),
            dict(type='mmcv.RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
            dict(type='mmpretrain.GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5),
            dict(type='mmcv.RandomFlip', prob=0.5),
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4 * 8256 / 256 / 2, betas=(0.9, 0.98), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='mmengine.LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=0.5, convert_to_iter_based=True),
    dict(type='mmengine.CosineAnnealingLR', by_epoch=True, begin=0.5, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs)
auto_scale_lr = dict(enable=True, base_batch_size=8256)

default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='mmengine.IterTimerHook'),
    logger=dict(type='mmengine.LoggerHook', interval=100),
    param_scheduler=dict(type='mmengine.ParamSchedulerHook'),
    checkpoint=dict(type='mmengine.CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='mmengine.DistSamplerSeedHook'),
)
custom_hooks = [dict(type='synthaug_plugins.MixResumeHook')]  # a resumed run goes on with the batches that it would have had
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
