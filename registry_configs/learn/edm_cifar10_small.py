"""A small class-conditional EDM denoiser of colour images such as CIFAR-10 at half their size, 16x16, from nothing. Half an hour of one CPU core.

synthaug learn edm edm_cifar10_small --data cifar10/train --out models/cifar10-small

Its images have the colours and rough shapes of their class and no more: it is sized for the study of pre-training on a CPU
(`synthaug compare pretraining_cifar10`), where an image of 32 pixels costs four times as much. On a GPU take edm_cifar10.
"""

# The denoiser. Every key: the docstring of synthaug_plugins.diffusion.check_denoiser_config.
model = dict(
    kind='edm',
    resolution=16,  # half of CIFAR's: a quarter of the arithmetic
    channels=3,
    label_conditioning=True,
    label_dropout=0.1,  # makes guidance possible
    sigma_data=0.5,
    network=dict(  # 1.3 M parameters
        type='ddpmpp',
        channels=32,
        channel_mult=(1, 2, 2),
        blocks_per_level=1,
        attention_resolutions=(8,),
        dropout=0.0,  # it sees every image a few times only
    ),
)
# Images, one folder per class; --data on the command line sets it.
data = None
# Class names in label order; None: the class folders in sorted order.
classes = None
# Every key: the docstring of synthaug_plugins.learning.options.EDMTraining.
training = dict(
    images_shown=120_000,  # raise it to go on with a finished training
    batch_size=32,  # many small steps: there is no time for few large ones
    learning_rate=1e-3,
    warmup_images=5_000,
    ema_half_life_images=8_000,
    P_mean=-0.8,  # rather than detail, shapes and colours: there is no time for both
    P_std=1.2,
    checkpoint_steps=250,
)
augment = None
# Sheets of samples in out/samples, every so many images shown.
samples = dict(every=40_000, per_class=8, max_classes=10, num_steps=12)
# The same seed, recipe and data give the same weights.
seed = 0
# For the card of the model; the licence also goes into every store that is made with it.
name = 'cifar10-small-edm'
licence = None
