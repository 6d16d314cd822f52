"""Digits as He et al. 2023 make zero-shot data: sentences by a language model (LE), then a CLIP filter (CF). About a minute on one CPU core.

synthaug generate he2023_zeroshot_digits --out stores/digits-zeroshot
"""

_base_ = './he2023_le_digits.py'

inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    # Keep an image if CLIP gives its own class more than 1/N of the probability, the chance among N classes. The probability is stored as
    # clip_p, kept or not. The embedded CLIP has seen the same 1200 digits as the generator, so it is a lenient judge of them.
    dict(type='synthaug_plugins.ClipFilter', model='embedded:digits_clip', rule='chance'),
]
