"""What the recipes inversion_* share (Diffusion Inversion: Zhou et al., "Training on Thin Air", 2023).

Not a recipe by itself: the files beside this folder inherit it, and say size and folder. How they differ from the paper and its code:
- Guidance leads away from the mean of all embeddings of the recipe, as the paper says. The code takes that of a group of 100 images at a time, or for
  MedMNIST and EuroSAT of a class: unconditional='group' or 'class'.
- A partner is any other image of the class. The code looks in the group only, may take an image for its own partner, and where the group
  lacks others of the class takes one of another class under the same label.
- Stable Diffusion's 100 steps are DDIM's, not PNDM's, and every image has a seed of its own.
Numbers made with these recipes are not the paper's.
"""

generator = dict(
    type='synthaug_plugins.DiffusionInversion',
    # 860 million parameters, trained at 512 pixels; embeddings learn to make it work at a smaller size, which is where the speed comes from. Embeddings
    # are of use for this model and revision only.
    model='CompVis/stable-diffusion-v1-4',
    revision='133a221b8aa7292a167afc5127cb63fb5005638b',  # so that the model cannot change
    variant='fp16',  # half the download; leave it out together with precision='fp32'
    precision='fp16',  # the paper: fp32; 'bf16' for newer models, 'fp32' on a CPU
    # Pools: each image draws one of each. Noise on the embedding, and the share of another image of its class. More is more varied, and less sure of its
    # class. lambdas=(0.0, 0.1, 0.2) makes all three, and "params.lambda <= 0.1" chooses among them later.
    lambdas=(0.1,),
    alphas=(0.1,),
    guidance_scales=(2.0,),  # 1 is no guidance and half the cost
    unconditional='all',
    partners='class',
    sampler=dict(num_steps=100),
)
# Folder with one folder of real images per class; --data sets it. Every image needs an embedding; those of other images are left alone.
data = None
# Class names in label order; None takes the class folders of data. No model is told them.
classes = None
# Accepted images of every real image: 5 in the published runs for each of their settings.
per_source = 5
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 512
# Images per network call; halved by itself when memory runs out.
batch_size = 64
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
