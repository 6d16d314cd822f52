"""`he2023_zeroshot` on the embedded CLIP: tuning on made digits alone, seconds on a CPU. Set folders and stores as there."""

_base_ = './he2023_zeroshot.py'
synthaug = dict(clip=dict(model='embedded:digits_clip'))
