"""Variants of your own few digits by DA-Fusion: a learned word per class, intensities drawn at random. About a minute on one CPU core.

synthaug learn words dafusion_words_digits --data data/digits/5-shot --out words/digits
synthaug generate dafusion_digits --data data/digits/5-shot --out stores/digits-dafusion
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.da_fusion.DAFusion.
generator = dict(
    type='synthaug_plugins.DAFusion',
    model='embedded:digits_sd',  # or Stable Diffusion 1 or 2 or SDXL: a folder in diffusers' layout, or a name on the Hugging Face hub
    # The words of the classes: what the first command above writes, from the same images. They belong to the model that they were learned for.
    words='words/digits/words.safetensors',
    # No class name reaches the text encoder, neither in a prompt nor in words that began from one: this is checked before weights load. 'allowed' skips it.
    class_names='never',
    prompts='a photo of a {}',  # {} is the learned word
    # Each image draws one: of 50 steps the last 12, 25, 37 or 50 run. 1.0 still starts from the real image, under the largest noise.
    t0=(0.25, 0.5, 0.75, 1.0),
    sampler=dict(num_steps=50),
    guidance_scale=2.0,  # the paper has 7.5, for Stable Diffusion; this small model overshoots there
    fit='pad',  # how a real image becomes the model's square: the whole of it in its own shape; 'crop' the centre; or 'squash', as the paper
)
# Folder with one folder of real images per class; --data sets it.
data = None
# Class names in label order; None takes the class folders of data. Every one needs a word in the file.
classes = None
# Accepted variants of every real image (M): 10 in the paper.
per_source = 10
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 200
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
