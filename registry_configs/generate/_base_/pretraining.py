"""What the recipes pretrain_* share: synthetic images to pre-train on (He et al., ICLR 2023, section 4). Language enhancement (LE), no filter.

They add the class names. How the images are made and how that differs from the paper: he2023.py.
"""

_base_ = './he2023_zeroshot.py'

# Many images of a class want many sentences. The paper does not say how many; ten images of each is its ratio for zero-shot data.
generator = dict(prompts=dict(sentences=1200))
# Without a filter all images are kept but broken ones.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
tries_per_image = 1.1
# A block is redone after a kill (on one GPU an hour or two) and is one shard: a store of millions opens the faster, the fewer there are.
block_size = 4096
# A million PNG files of 256 pixels are 100 GB, JPEG a fifth of it.
image = dict(format='jpg', quality=95, size=256)
