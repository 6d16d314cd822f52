"""ImageNet at 64 pixels as in EDM: ADM, 295.9 M parameters, class-conditional.

synthaug learn edm edm_imagenet64 --data imagenet/train --out models/imagenet64

The paper trained for about 13 days on 32 A100 GPUs and states FID 2.22 with 79 network calls per image without churn, 1.36 with
511 and churn 40 (Karras et al. 2022, the least of three runs of 50,000 images). These are the paper's figures; this recipe has not
been run here, and one GPU would need most of a year. The paper used float16 with a scaled loss; bfloat16 needs no scale.
"""

# The denoiser. Every key: the docstring of synthaug_plugins.diffusion.check_denoiser_config.
model = dict(
    kind='edm',
    resolution=64,
    channels=3,
    label_conditioning=True,
    label_dropout=0.0,  # as published; 0.1 makes guidance possible
    sigma_data=0.5,  # as published
    network=dict(
        type='adm',
        channels=192,
        channel_mult=(1, 2, 3, 4),
        blocks_per_level=3,
        attention_resolutions=(32, 16, 8),
        dropout=0.1,
    ),
)
# Images, one folder per class; --data on the command line sets it. Decoded once: 16 GB in out/data.
data = None
# Class names in label order; None: the class folders in sorted order.
classes = None
# Every key: the docstring of synthaug_plugins.learning.options.EDMTraining.
training = dict(
    images_shown=2_500_000_000,
    batch_size=4096,
    accumulation=32,  # parts of 128 images
    learning_rate=1e-4,
    warmup_images=10_000_000,
    weight_decay=0.0,
    grad_clip=None,
    ema_half_life_images=50_000_000,
    P_mean=-1.2,
    P_std=1.2,
    precision='bf16',
    compile=True,
    checkpoint_steps=250,
)
# No augmentation: 1.28 million images are many.
augment = None
# Sheets of samples in out/samples, every so many images shown.
samples = dict(every=10_000_000, per_class=8, max_classes=16, num_steps=40)
# The same seed, recipe and data give the same weights (on a GPU nearly).
seed = 0
# For the card of the model; the licence also goes into every store that is made with it.
name = 'imagenet64-edm'
licence = None
