"""Any classes from their names alone, the way we would do it: low guidance, diverse prompts, CLIP filter. Needs a GPU.

synthaug generate recommended_zeroshot --out stores/mine --cfg-options "classes=['red fox', 'grey wolf']"

He et al. (ICLR 2023) with what was learned since. Not a reproduction of a paper.
"""

generator = dict(
    type='synthaug_plugins.TextToImage',
    # Newer models draw prettier pictures and train worse classifiers: less varied, further from the label (arXiv 2602.19946). So this old one is
    # no stopgap. Others by name: 'stabilityai/stable-diffusion-xl-base-1.0' with image_size=512 or 1024, at several times the cost.
    model='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',  # so that the model cannot change
    variant='fp16',  # half the download; leave it out together with precision='fp32'
    precision='fp16',  # 'bf16' for newer models, 'fp32' on a CPU
    # The usual 7.5 makes typical, much alike pictures. For training, low values are far better: Fan et al. ("Scaling laws of synthetic images for
    # model training", CVPR 2024) came to 2.0 for classifiers, and SynCLR (Tian et al., CVPR 2024) works at 2.0 to 2.5.
    guidance_scale=2.0,
    # Fewer steps with a better solver than the 50 of DDIM.
    num_steps=25,
    sampler=dict(solver='dpmpp_2m'),
    # Diverse captions beat the bare class name (Fan et al.; SynCLR). An instruct model writes better ones than the paper's T5
    # ('mrm8488/t5-base-finetuned-common_gen', smaller and without instruction). Without any language model:
    # prompts=dict(type='synthaug_plugins.Basic', templates='diverse').
    prompts=dict(
        type='synthaug_plugins.Enhanced',
        model='Qwen/Qwen2.5-1.5B-Instruct',  # or any other that follows instructions, by hub name or folder
        sentences=200,
        max_new_tokens=40,
        hints=True,  # say which sense is meant where a name has several ('crane, bird')
        # dataset='cub',  # one of the 17 with names and wording of their own; names='my_names.json' for your own
    ),
)
# Your class names, in label order; --data FOLDER takes them from its folders instead.
classes = None
# Accepted images wanted per class: a number, or dict(cat=1000, dog=300), such as what a rare class lacks. Synthetic images help most where real
# ones are few, or together with them (Fan et al.).
per_class = 500
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 250
# Images per network call; halved by itself when memory runs out.
batch_size = 32
# Requests allowed per wanted image. A class that ends short is one that the model cannot draw: more images of it would not help either.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    # What CLIP does not take for its class at all is left out, and nothing more: a strict filter keeps the typical. Its scores are stored, so that
    # a training can select more strictly: "clip_p > 0.5". Several templates, averaged, judge more steadily than one.
    dict(type='synthaug_plugins.ClipFilter', model='RN50', pretrained='openai', rule='chance', templates='diverse'),
]
# 256 pixels and JPEG are a tenth of the disk space, and what most classifiers see. Leave size out to store what the model makes.
image = dict(format='jpg', quality=95, size=256)
