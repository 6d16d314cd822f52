"""Your few labelled images, edited as DA-Fusion does: a learned word per class, intensities drawn at random. Needs a GPU.

synthaug learn words dafusion_words --data my/images --out words/mine
synthaug generate dafusion --data my/images --out stores/dafusion

Trabucco et al., ICLR 2024, with its aspect ratios kept. dafusion_paper_compat.py is closer to the published code, quirks included. How both differ from
the paper: Stable Diffusion 1.5 stands in for 1.4, DDIM's steps for PNDM's, and every image has a seed of its own. Numbers made with them are not the paper's.
"""

generator = dict(
    type='synthaug_plugins.DAFusion',
    # 860 million parameters, 512 pixels, open weights; the paper takes version 1.4. Words belong to the model that they were learned for.
    model='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',  # so that the model cannot change
    variant='fp16',  # half the download; leave it out together with precision='fp32'
    precision='fp16',  # 'bf16' for newer models, 'fp32' on a CPU
    # The words of the classes: what the first command above writes. Learn them from the same images, or from fewer, never from others: whatever
    # the words have seen, the classifier has seen.
    words='words/mine/words.safetensors',
    # The later, published setting begins each word at the class's name (4 vectors, 2000 steps), and what the model knows of the name is then in it. That
    # is fine for accuracy; it is no test of what the model can do with classes that it never met. 'never' (the default) is that test: it refuses
    # such words and every prompt that names a class; learn the words from a word without a class then.
    class_names='allowed',
    prompts='a photo of a {}',  # {} is the learned word
    # Each image draws one: of 50 steps the last 12, 25, 37 or 50 run. 1.0 still starts from the real image, under the largest noise. The column
    # params.t0 says which, so a selection may leave some out; the paper trains on all four.
    t0=(0.25, 0.5, 0.75, 1.0),
    sampler=dict(num_steps=50),
    # As the paper. Lower is more varied, and usually better for training classifiers (see recommended_fewshot.py).
    guidance_scale=7.5,
    # The whole image in its own shape; what is left of the square is filled with its mirror image, and cut off again.
    fit='pad',
)
# Folder with one folder of real images per class; --data sets it.
data = None
# Class names in label order; None takes the class folders of data. Every one needs a word in the file.
classes = None
# M, the accepted variants of every real image: 10 in the paper (50 for its satellite data); 5 and 20 are nearly as good.
per_source = 10
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 160
# Images per network call; halved by itself when memory runs out. Batches hold one intensity each: the larger the block, the fuller they are.
batch_size = 32
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
# Each variant in the size of its real image, as the paper's code stores it. JPEG is a tenth of the disk space.
image = dict(format='jpg', quality=95, size='source')
