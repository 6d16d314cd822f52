"""Variants of your own few digits, as He et al. 2023 make few-shot data: real guidance (RG) with the plain prompt. About a minute on one CPU core.

synthaug generate he2023_fewshot_rg_digits --data data/digits/5-shot --out stores/digits-rg
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.real_guidance.RealGuidance.
generator = dict(
    type='synthaug_plugins.RealGuidance',
    model='embedded:digits_sd',  # or any folder in diffusers' layout, or a name on the Hugging Face hub
    # How far a variant may leave its real image, by the number of real images per class: the paper lets 15, 20, 35, 40 or 50 of 100 steps run
    # for 16, 8, 4, 2 or 1 of them (the nearest entry for others). 'auto' counts yours; strength=0.3 says it directly.
    shots='auto',
    # 'paper' takes that share of the steps; 'snr_matched' starts at the same ratio of signal to noise as the paper's model, much closer to the real image.
    strength_map='paper',
    prompts=dict(type='synthaug_plugins.Basic', templates='a photo of a {}'),
    guidance_scale=2.0,  # 1 is no guidance; higher is more typical and less varied
    sampler=dict(num_steps=100),  # of the full way, of which 15 to 50 run
    fit='crop',  # how a real image becomes a square: 'crop' the centre, or 'squash'
)
# Folder with one folder of real images per class; --data sets it.
data = None
# Class names in label order; None takes the class folders of data, sorted by name. They must be words that the prompt can say.
classes = None
# Accepted images wanted per class: a number, or dict(three=50, eight=200). Every real image gets equally many variants.
per_class = 50
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 50
# Images per network call; halved by itself when memory runs out.
batch_size = 50
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: size='source' gives each variant the size of its real image (8 pixels here).
image = dict(format='png', size='source')
