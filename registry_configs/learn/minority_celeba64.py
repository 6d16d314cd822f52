"""How rare faces of 64 pixels are to a denoiser of them, and a classifier of ten levels: for a folder such as CelebA-64.

synthaug learn minority minority_celeba64 --data data/celeba64 --out models/celeba64-levels

The denoiser comes from `synthaug learn edm` or `synthaug convert`; a data set without classes is a folder with one class folder. What the authors of minority
guidance (Um, Lee and Ye, ICLR 2024) set for CelebA is not in their code: the classifier below is ours, its training theirs for LSUN.
"""

# The denoiser that scores the images, and that the classifier will guide.
model = 'models/celeba64/model'
data = None
classes = None
score = dict(sigma=6.5, draws=5, distance=dict(type='synthaug_plugins.LPIPS', network='vgg'))
scores = None
levels = dict(count=10, rank='all')
classifier = dict(
    label_conditioning=False,
    features=None,
    loss='ordinal',
    channels=64,
    channel_mult=(1, 2, 3, 4),
    blocks_per_level=2,
    attention_resolutions=(16, 8),
)
training = dict(images_shown=15_360_000, flip=True)
seed = 0
name = 'CelebA-64 levels'
licence = None
