"""`he2023_fewshot_mix` on the embedded CLIP: mix training on real and made digits, seconds on a CPU. Set folders and stores as there."""

_base_ = './he2023_fewshot_mix.py'
synthaug = dict(clip=dict(model='embedded:digits_clip'))
