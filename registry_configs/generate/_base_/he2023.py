"""What the recipes he2023_* share (He et al., "Is synthetic data from generative models ready for image recognition?", ICLR 2023).

Not a recipe by itself: the files beside this folder inherit it. How they differ from the paper:
- The paper's generator is GLIDE (64 pixels, enlarged to 256). It is not in diffusers and its weights are pickles. Stable Diffusion 1.5
  stands in for it: the same kind of model, a U-Net told by a text encoder with classifier-free guidance. It makes 512 pixels, stored
  at 256. docs/examples/foreign_generator shows how to plug in GLIDE itself, or any other model.
- GLIDE takes 100 steps and 27 more to enlarge; here it is 50 of DDIM, which is what Stable Diffusion is used with.
- Quotas count kept images, so every class gets the same number while its tries last.
Numbers made with these recipes are not the paper's.
"""

generator = dict(
    # 860 million parameters, 512 pixels, open weights; the repository took the place of the first one, which was taken down in 2024.
    model='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',  # so that the model cannot change
    variant='fp16',  # half the download; leave it out together with precision='fp32'
    precision='fp16',  # as the paper; 'bf16' for newer models, 'fp32' on a CPU
    guidance_scale=3.0,  # as the paper; lower is more varied, see recommended_zeroshot.py
    # Its safety checker flags harmless pictures too, and blackens them in other tools. 'flag' writes its verdict into a column.
    safety='off',
)
# Accepted images wanted per class. The paper generates 2000 and trains on 800 of those that its CLIP filter leaves.
per_class = 800
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 200
# Images per network call; halved by itself when memory runs out.
batch_size = 32
# Requests allowed per wanted image before a class is left short of its quota: 2.5 x 800 are the paper's 2000.
tries_per_image = 2.5
# The same seed and recipe make the same images.
seed = 0
# How images are stored. 256 is the paper's size; its classifiers see 224. Without size: as the model makes them.
image = dict(format='png', size=256)
