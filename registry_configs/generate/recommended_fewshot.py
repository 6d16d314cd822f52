"""Any few labelled images, multiplied the way we would do it: starts of all strengths, low guidance. Needs a GPU.

synthaug generate recommended_fewshot --data my/images --out stores/mine

Between He et al. (ICLR 2023) and DA-Fusion (ICLR 2024), with what was learned since. Not a reproduction of a paper.
"""

generator = dict(
    type='synthaug_plugins.RealGuidance',
    model='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',  # so that the model cannot change
    variant='fp16',  # half the download; leave it out together with precision='fp32'
    precision='fp16',  # 'bf16' for newer models, 'fp32' on a CPU
    # The usual 7.5 makes typical, much alike pictures; about 2 is far better for training classifiers (Fan et al., CVPR 2024).
    guidance_scale=2.0,
    # Which strength is right differs between data sets, and nobody knows it beforehand. All four are made, evenly; the column params.t0 says which, so that
    # a comparison can choose on validation: "params.t0 <= 0.5". DA-Fusion trains on all four together.
    t0=[0.25, 0.5, 0.75, 1.0],
    sampler=dict(num_steps=25, solver='dpmpp_2m'),
    # The real image brings the class, the words bring variety. hints: say which sense is meant where a name has several.
    prompts=dict(type='synthaug_plugins.Basic', templates='diverse', hints=True),
    fit='crop',  # how a real image becomes a square: 'crop' the centre, or 'squash'
)
# Folder with one folder of real images per class; --data sets it. Its folders are the class names.
data = None
# DA-Fusion makes 10 variants per real image: 160 for 16 shots. A number, or dict(three=50, eight=200).
per_class = 160
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 160
# Images per network call; halved by itself when memory runs out.
batch_size = 32
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    # Strong variants may leave their class: drop what lies closer to another class's real images than to its own (in CLIP's eyes).
    dict(type='synthaug_plugins.RealFilter', model='RN50', pretrained='openai'),
]
# 256 pixels and JPEG are a tenth of the disk space, and what most classifiers see.
image = dict(format='jpg', quality=95, size=256)
