"""Caltech-101 from a few real images by real guidance, as in He et al. 2023. Needs a GPU.

synthaug generate he2023_fewshot_rg_caltech101 --data data/caltech101/16-shot --out stores/caltech101-rg

What is made and how it differs from the paper: _base_/he2023.py.
"""

_base_ = './_base_/he2023_fewshot_rg.py'

generator = dict(prompts=dict(dataset='caltech101'))
