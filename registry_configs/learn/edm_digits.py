"""A class-conditional EDM denoiser of 8x8 grey images such as handwritten digits, from nothing. Ten to 25 minutes on one CPU core.

synthaug learn edm edm_digits --data my/digits --out models/digits
"""

# The denoiser. Every key: the docstring of synthaug_plugins.diffusion.check_denoiser_config.
model = dict(
    kind='edm',  # EDM's preconditioning; 'vp', 've' and 'iddpm' are the older ones
    resolution=8,  # pixels per side; images are cropped to their centred square and resized
    channels=1,  # 1: grey, 3: RGB
    label_conditioning=True,  # the network is told the class
    label_dropout=0.1,  # for this share of the images it is not: makes guidance possible, and RealGuidance without labels
    sigma_data=None,  # None: the root mean square of the training images, measured
    network=dict(  # 0.75 M parameters; channel_mult=(1, 1) has 0.31 M and takes two thirds of the time
        type='ddpmpp',
        channels=32,  # of the first level
        channel_mult=(1, 2),  # one factor per level, each half the size of the one before: 8 and 4 pixels
        blocks_per_level=1,
        attention_resolutions=(4,),
        dropout=0.2,  # small data sets need much
    ),
)
# Images, one folder per class; --data on the command line sets it.
data = None
# Class names in label order; None: the class folders in sorted order.
classes = None
# Every key: the docstring of synthaug_plugins.learning.options.EDMTraining.
training = dict(
    images_shown=256_000,  # length; raise it to go on with a finished training
    batch_size=128,
    learning_rate=1e-3,
    warmup_images=20_000,
    ema_half_life_images=12_000,  # half-life of the weight average that becomes the model
    P_mean=-0.6,  # where on ln sigma to train: chosen by hand for few grey levels; for other data ask `synthaug calibrate`
    P_std=1.2,
    class_balance=False,  # True: every class equally often
    checkpoint_steps=125,  # a killed training goes on from the last one
)
# Non-leaking augmentation: each transform with probability p. The network is told what was done by 9 numbers, and draws upright digits
# when it is told nothing. xflip=1 makes mirroring as rare as the rest; by default every second image is mirrored. None: no augmentation.
augment = dict(p=0.12, xflip=1)
# Sheets of samples in out/samples, every so many images shown.
samples = dict(every=60_000, per_class=10, max_classes=10, num_steps=18)
# The same seed, recipe and data give the same weights.
seed = 0
# For the card of the model; the licence also goes into every store that is made with it.
name = 'digits'
licence = None
