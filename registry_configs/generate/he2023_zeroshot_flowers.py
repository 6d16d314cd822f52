"""Oxford Flowers from class names alone, as in He et al. 2023: sentences by a language model, Stable Diffusion, CLIP filter. Needs a GPU.

synthaug generate he2023_zeroshot_flowers --out stores/flowers-zeroshot

What is made and how it differs from the paper: _base_/he2023.py.
"""

_base_ = './_base_/he2023_zeroshot.py'

from synthaug_plugins.prompts import datasets  # noqa: E402  MMEngine wants _base_ first

classes = list(datasets.dataset_names('flowers'))
generator = dict(prompts=dict(dataset='flowers'))
inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    # CF: keep an image if CLIP gives its class more than 1/N, the chance among N classes. OpenAI's RN50, as in the paper.
    dict(type='synthaug_plugins.ClipFilter', model='RN50', pretrained='openai', rule='chance', dataset='flowers', hints=False),
]
