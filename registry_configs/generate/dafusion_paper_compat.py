"""DA-Fusion as its published code makes images: squashed to 512 x 512, four augmenters of one intensity each. Needs a GPU.

synthaug learn words dafusion_words --data my/images --out words/mine
synthaug generate dafusion_paper_compat --data my/images --out stores/dafusion-compat

dafusion.py is what we would use: it keeps aspect ratios. What differs from the paper all the same stands there.
"""

_base_ = './dafusion.py'

_shared = dict(
    type='synthaug_plugins.DAFusion',
    model='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',
    variant='fp16',
    precision='fp16',
    words='words/mine/words.safetensors',
    class_names='allowed',  # the published words begin at the names of the classes
    prompts='a photo of a {}',
    sampler=dict(num_steps=50),
    guidance_scale=7.5,
    # The code squashes whatever it gets into 512 x 512 and stretches the result back: a quirk that a classifier can notice.
    fit='squash',
    image_size=512,
)
# The main method of the paper as its code says it: one of four augmenters is picked for each image, each with its own fixed intensity. A single DAFusion
# with all four in its pool is the same but for the draws. The model is loaded once for all four.
generator = dict(
    _delete_=True,
    type='synthaug_plugins.Parallel',
    generators=[dict(t0=1.0, **_shared), dict(t0=0.75, **_shared), dict(t0=0.5, **_shared), dict(t0=0.25, **_shared)],
    probs=[0.25, 0.25, 0.25, 0.25],
)
del _shared
# Nothing is rejected: the code looks at no image.
inspectors = []
image = dict(format='png', size='source')
