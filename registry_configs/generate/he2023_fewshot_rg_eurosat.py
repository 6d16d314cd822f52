"""EuroSAT from a few real images by real guidance, as in He et al. 2023. Needs a GPU.

synthaug generate he2023_fewshot_rg_eurosat --data data/eurosat/16-shot --out stores/eurosat-rg

What is made and how it differs from the paper: _base_/he2023.py.
"""

_base_ = './_base_/he2023_fewshot_rg.py'

generator = dict(prompts=dict(dataset='eurosat'))
# The data set's own images have 64 pixels. A line that is commented out in the paper's code shrinks synthetic images to that size first, so
# that both look alike once enlarged for the classifier. Here that is image = dict(size=64).
