"""`he2023_fewshot_real` on the embedded CLIP: few-shot tuning on real digits, seconds on a CPU. Set folders and stores as there."""

_base_ = './he2023_fewshot_real.py'
synthaug = dict(clip=dict(model='embedded:digits_clip'))
