"""Digits from the plain class name (B of He et al. 2023), by the embedded text-to-image model. About a minute on one CPU core.

synthaug generate he2023_basic_digits --out stores/digits-basic

Three recipes show the paper's zero-shot steps at the size of a toy: this one, he2023_le_digits (language enhancement) and
he2023_zeroshot_digits (and the CLIP filter). All of it is real: tokenizer, text encoder, U-Net and VAE in Stable Diffusion's layout.
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.text_to_image.TextToImage.
generator = dict(
    type='synthaug_plugins.TextToImage',
    model='embedded:digits_sd',  # or any folder in diffusers' layout, or a name on the Hugging Face hub
    # What the model is told of each class.
    prompts=dict(type='synthaug_plugins.Basic', templates='a photo of a {}'),
    guidance_scale=2.0,  # 1 is no guidance; higher is more typical and less varied
    num_steps=25,  # of the model's own scheduler; two network calls each with guidance
)
# Class names in label order, which must be that of the training set: class folders are sorted by name, so these are.
classes = ['eight', 'five', 'four', 'nine', 'one', 'seven', 'six', 'three', 'two', 'zero']
# Accepted images wanted per class: a number, or dict(three=50, eight=200).
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
# How images are stored. The model makes 16 pixels; real digits have 8, and so has the classifier of the demo.
image = dict(format='png', size=8)
