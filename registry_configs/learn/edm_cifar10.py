"""CIFAR-10 as in EDM's configuration F: DDPM++, 55.7 M parameters, class-conditional, 32x32 RGB.

synthaug learn edm edm_cifar10 --data cifar10/train --out models/cifar10

The paper trained for about two days on 8 V100 GPUs and states FID 1.79 with 35 network calls per image (Karras et al. 2022,
Table 2: the least of three runs of 50,000 images). That is the paper's figure; this recipe has not been run to the end here.
It differs from the paper in the loss' scale (mean over pixels, without effect under Adam) and in the warm-up, whose first step counts.
"""

# The denoiser. Every key: the docstring of synthaug_plugins.diffusion.check_denoiser_config.
model = dict(
    kind='edm',
    resolution=32,
    channels=3,
    label_conditioning=True,
    label_dropout=0.0,  # as published; 0.1 makes guidance possible
    sigma_data=0.5,  # as published; measured it is 0.506
    network=dict(
        type='ddpmpp',
        channels=128,
        channel_mult=(2, 2, 2),
        blocks_per_level=4,
        attention_resolutions=(16,),
        dropout=0.13,
    ),
)
# Images, one folder per class; --data on the command line sets it.
data = None
# Class names in label order; None: the class folders in sorted order.
classes = None
# Every key: the docstring of synthaug_plugins.learning.options.EDMTraining.
training = dict(
    images_shown=200_000_000,
    batch_size=512,
    accumulation=1,  # more parts need less memory; 4 fits a GPU of 16 GiB
    learning_rate=1e-3,
    warmup_images=10_000_000,
    weight_decay=0.0,
    grad_clip=None,
    ema_half_life_images=500_000,
    P_mean=-1.2,
    P_std=1.2,
    precision='fp32',  # as published; 'bf16' is faster
    compile=False,  # True: torch.compile, which takes minutes at the start
    checkpoint_steps=2000,
)
# Non-leaking augmentation; the network gets its 9 labels.
augment = dict(p=0.12)
# Sheets of samples in out/samples, every so many images shown.
samples = dict(every=5_000_000, per_class=12, max_classes=10, num_steps=18)
# The same seed, recipe and data give the same weights (on a GPU nearly: its kernels add in changing order).
seed = 0
# For the card of the model; the licence also goes into every store that is made with it.
name = 'cifar10-edm'
licence = None
