"""Stanford Cars from a few real images by real guidance, as in He et al. 2023. Needs a GPU.

synthaug generate he2023_fewshot_rg_cars --data data/cars/16-shot --out stores/cars-rg

What is made and how it differs from the paper: _base_/he2023.py.
"""

_base_ = './_base_/he2023_fewshot_rg.py'

generator = dict(prompts=dict(dataset='cars'))
