"""A class-conditional EDM denoiser of 64x64 RGB satellite images (EuroSAT, 10 classes), of modest size. Hours on one GPU.

synthaug learn edm edm_eurosat64 --data eurosat/train --out models/eurosat64

No published figure belongs to this recipe. Sizes and noise levels are our choice: P_mean and P_std come from `synthaug calibrate`,
which measures sigma_data 0.398 on 4,000 images and proposes -1.35 and 1.67.
"""

# The denoiser. Every key: the docstring of synthaug_plugins.diffusion.check_denoiser_config.
model = dict(
    kind='edm',
    resolution=64,
    channels=3,
    label_conditioning=True,
    label_dropout=0.1,  # makes guidance possible
    sigma_data=None,  # measured
    network=dict(
        type='ddpmpp',
        channels=64,
        channel_mult=(1, 2, 2, 2),
        blocks_per_level=2,
        attention_resolutions=(16,),
        dropout=0.1,
    ),
)
# Images, one folder per class; --data on the command line sets it.
data = None
# Class names in label order; None: the class folders in sorted order.
classes = None
# Every key: the docstring of synthaug_plugins.learning.options.EDMTraining.
training = dict(
    images_shown=20_000_000,
    batch_size=256,
    accumulation=1,
    learning_rate=5e-4,
    warmup_images=500_000,
    weight_decay=0.0,
    ema_half_life_images=500_000,
    power_ema_stds=(0.05, 0.10),  # averages of any width can be reconstructed after the training
    snapshot_steps=4000,
    class_balance=True,
    P_mean=-1.35,
    P_std=1.67,
    precision='auto',  # bf16 where the GPU has it
    checkpoint_steps=1000,
)
# Non-leaking augmentation: there is no up and down from above, and 4,000 images are few.
augment = dict(p=0.15)
# Sheets of samples in out/samples, every so many images shown.
samples = dict(every=1_000_000, per_class=10, max_classes=10, num_steps=18)
# The same seed, recipe and data give the same weights (on a GPU nearly).
seed = 0
# For the card of the model; the licence also goes into every store that is made with it.
name = 'eurosat64-edm'
licence = None
