"""How rare bedrooms of 256 pixels are, as published: minority guidance on LSUN Bedrooms (Um, Lee and Ye, ICLR 2024), 100 levels, 60,000 steps of 256.

synthaug learn minority minority_lsun_bedroom --data data/lsun-bedroom-tenth --out models/lsun-bedroom-levels

The authors learned from about a tenth of the training images: give a folder with so many, 303,000. Three things differ. Their classifier looks at features of
a classifier of ImageNet, this one at features of the denoiser itself, which are there anyway. Theirs saw random crops, although scores are of the centre: this
one sees what was scored. And levels have exactly equal shares, where ties of the published quantiles do not.
"""

# A denoiser of 256 pixels, such as the published one (ADM, linear schedule: kind 'vp') by `synthaug convert`.
model = 'models/lsun-bedroom/model'
data = None
classes = None
score = dict(
    timestep=(60, 100),  # place 60 of 100 steps of the linear schedule: sigma 6.37
    schedule='linear',
    draws=5,
    distance=dict(type='synthaug_plugins.LPIPS', network='vgg'),
)
scores = None
levels = dict(count=100, rank='all')
classifier = dict(
    label_conditioning=False,
    features='model',  # 8 x 8 pixels in the middle of the denoiser's network
    loss='cross_entropy',  # published; 'ordinal' knows that levels have an order
    pooling='attention',
    channels=128,
    channel_mult=(1,),
    blocks_per_level=2,
    attention_resolutions=(8,),
)
training = dict(
    images_shown=15_360_000,
    batch_size=256,
    learning_rate=3e-4,  # falling to 0
    weight_decay=0.05,
    flip=True,
    noise='linear',  # every timestep of the linear schedule equally often
    # The network of the denoiser knows noise levels up to 152; the last of 1000 timesteps has 157.
    sigma_min=0.0101,
    sigma_max=152.0,
    validation=0.05,
)
seed = 0
name = 'LSUN Bedrooms levels'
licence = None
