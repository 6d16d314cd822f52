"""Variants of your own few digits by Diffusion Inversion: an embedding of each real image, perturbed. Minutes on one CPU core.

synthaug learn embeddings inversion_digits --data data/digits/5-shot --out embeddings/digits
synthaug generate inversion_digits --data data/digits/5-shot --out stores/digits-inversion
"""

# What makes the images. Every option: the docstring of synthaug_plugins.generators.diffusion_inversion.DiffusionInversion.
generator = dict(
    type='synthaug_plugins.DiffusionInversion',
    model='embedded:digits_sd',  # or any folder in diffusers' layout, a name on the Hugging Face hub, or a model folder of our own
    # What the first command above writes, for the same images or more. Embeddings belong to the model and size that they were learned for.
    embeddings='embeddings/digits/embeddings',
    # Pools: each image draws one of each. Noise on the embedding, and the share of another image of its class.
    lambdas=(0.1,),
    alphas=(0.1,),
    guidance_scales=(2.0,),  # away from the mean of all embeddings; 1 is no guidance and half the cost
    unconditional='all',
    partners='class',
    sampler=dict(num_steps=25),
)
# Folder with one folder of real images per class; --data sets it. Every image needs an embedding.
data = None
# Class names in label order; None takes the class folders of data. No model is told them.
classes = None
# Accepted images of every real image: 5 in the published runs for each of their settings.
per_source = 5
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 250
# Images per network call; halved by itself when memory runs out.
batch_size = 50
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# How images are stored: size='source' gives each the size of its real image (8 pixels here).
image = dict(format='png', size='source')
