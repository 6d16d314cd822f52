"""How rare the images of CIFAR-10 are to a denoiser of it, and a classifier of ten levels within each class.

synthaug learn minority minority_cifar10 --data data/cifar10/train --out models/cifar10-levels

The denoiser comes from `synthaug learn edm edm_cifar10`, or from elsewhere by `synthaug convert`. What the authors of minority guidance (Um, Lee and Ye, ICLR
2024) set for CIFAR-10 is not in their code: the classifier below is ours, its training theirs for LSUN.
"""

# The denoiser that scores the images, and that the classifier will guide.
model = 'models/cifar10/model'
data = None
classes = None
score = dict(sigma=6.5, draws=5, distance=dict(type='synthaug_plugins.LPIPS', network='vgg'))
scores = None
# Within the class: else the levels of a hard class would all be high.
levels = dict(count=10, rank='class')
# A U-Net's encoder on the images, as published for small images.
classifier = dict(
    label_conditioning=True,
    features=None,
    loss='ordinal',
    channels=64,
    channel_mult=(1, 2, 2, 2),
    blocks_per_level=2,
    attention_resolutions=(16, 8),
    dropout=0.1,
)
training = dict(images_shown=7_680_000, flip=True)
seed = 0
name = 'CIFAR-10 levels'
licence = None
