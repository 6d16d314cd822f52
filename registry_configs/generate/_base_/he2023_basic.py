"""Zero-shot data of He et al. (ICLR 2023) with the basic prompt (B): the plain class name in a template, no filter. The files he2023_basic_* inherit it.

They add the data set's class names and wording.
"""

_base_ = './he2023.py'

generator = dict(
    type='synthaug_plugins.TextToImage',
    num_steps=50,
    prompts=dict(type='synthaug_plugins.Basic', hints=False),  # hints: 'crane, bird', which the paper does not say
)
# Without a filter the paper's 2000 images are all kept.
per_class = 2000
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
