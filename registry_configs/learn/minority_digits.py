"""How rare handwritten digits are to the embedded denoiser, and a classifier of ten levels of it. A minute and a half for 1,200 images on one CPU core.

synthaug learn minority minority_digits --data my/digits --out models/digits-levels

The method is that of minority guidance (Um, Lee and Ye, ICLR 2024) scaled down to images of 8 pixels; see minority_lsun_bedroom.py for the published setting.
"""

# The denoiser that scores the images, and that the classifier will guide.
model = 'embedded:digits_edm'
# Images, one folder per class; --data on the command line sets it.
data = None
# Names of the class folders to learn from; None: all.
classes = None
# How they are scored. Every key: the docstring of synthaug_plugins.curation.minority_score.MinorityScore.
score = dict(
    # 6.5 is meant for larger images: of 8 x 8 pixels it leaves hardly anything. At 1.0 the score goes best with the distance to the nearest other training
    # digits: rank correlation 0.8, at 6.5 it is 0.5.
    sigma=1.0,
    draws=20,  # five are published, for higher noise: here two sets of five agree poorly (rank correlation 0.65; two of 20: 0.87)
    distance=dict(type='synthaug_plugins.MSE'),  # perceptual distances see nothing in 8 pixels
)
# A file that `synthaug score` made with these options, in place of scoring again.
scores = None
# Ten levels of equal size. rank='class' ranks each image within its class, as published for models that are told the class; of 120 images of a digit too little
# can be learned of that.
levels = dict(count=10, rank='all')
# The classifier of noisy images. Every key: the docstring of synthaug_plugins.diffusion.level_classifier.LevelClassifier.
classifier = dict(
    label_conditioning=True,  # it is told the class: without, common levels pull every digit towards 'one' and 'zero'
    features=None,  # it looks at images; 'model': at what the denoiser makes of them
    loss='ordinal',  # 'cross_entropy' is published; levels have an order
    channels=16,
    channel_mult=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(),
    dropout=0.3,  # small data sets need much
)
# Every key: the docstring of synthaug_plugins.learning.minority_options.LevelTraining.
training = dict(
    images_shown=128_000,
    batch_size=128,
    learning_rate=3e-3,
    validation=0.1,  # 5 percent of 1,200 images say too little
    checkpoint_steps=125,
)
# The same seed, recipe and data give the same levels and weights.
seed = 0
# For the card of the classifier.
name = 'digit levels'
licence = None
