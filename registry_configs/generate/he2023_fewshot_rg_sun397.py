"""SUN397 from a few real images by real guidance, as in He et al. 2023. Needs a GPU.

synthaug generate he2023_fewshot_rg_sun397 --data data/sun397/16-shot --out stores/sun397-rg

What is made and how it differs from the paper: _base_/he2023.py.
"""

_base_ = './_base_/he2023_fewshot_rg.py'

generator = dict(prompts=dict(dataset='sun397'))
