"""A word for each of your classes, from a few images each, for Stable Diffusion 1.5: textual inversion as DA-Fusion uses it.

synthaug learn words dafusion_words --data my/images --out words/mine

Trabucco et al., "Effective Data Augmentation With Diffusion Models", ICLR 2024. The setting is the later one of its author; it used
Stable Diffusion 1.4, whose weights 1.5 goes on from. Per class 2000 steps of 8 images of 512 pixels. This recipe has not been run to the end here.
"""

# The pipeline: options of synthaug_plugins.models.text_model.TextModel. Words are of use for this model and revision only.
model = dict(
    name='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',  # so that the model cannot change
    variant='fp16',  # half the download
)
# Images, one folder per class; --data on the command line sets it.
data = None
# Names of the class folders to learn words for; None: all.
classes = None
# Images per class, drawn by shots_seed as `synthaug shots` draws them; None: all.
shots = None
shots_seed = 0
# 'iclr2024': 4 vectors that start from the class's name, 2000 steps of 8 images, learning rate 4e-3.
# 'preprint': 1 vector that starts from the word 'the', 1000 steps of 4 images, 2e-3. Nothing of the class's name is in such words: the published
# defence against leakage from the model's training data.
preset = 'iclr2024'
# What differs from the preset. Every key: the docstring of synthaug_plugins.learning.words_options.WordTraining.
training = dict(
    hflip=0.5,  # 0 where a mirrored image is another class
    fit='squash',  # as published; 'crop' and 'pad' keep the aspect ratio
    accumulation=1,  # 2 or more parts need less memory
    precision='auto',  # bf16 where the GPU has it
)
# The sheet: samples of each word beside real images of its class.
samples = dict(per_class=4, max_classes=16, num_steps=25, guidance_scale=7.5)
# The same seed, recipe and data give the same words (on a GPU nearly).
seed = 0
# For the card of the words.
name = None
licence = None
