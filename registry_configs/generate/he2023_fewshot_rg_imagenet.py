"""ImageNet from a few real images by real guidance, as in He et al. 2023. Needs a GPU.

synthaug generate he2023_fewshot_rg_imagenet --data data/imagenet/16-shot --out stores/imagenet-rg

What is made and how it differs from the paper: _base_/he2023.py. Labels are WordNet ids, as the data set's folders are called.
"""

_base_ = './_base_/he2023_fewshot_rg.py'

generator = dict(prompts=dict(dataset='imagenet'))
