"""What the recipes round_trip_* share: real images through the autoencoder of Stable Diffusion 1.4 and back, once each.

Not a recipe by itself: the files beside this folder inherit it, and have the sizes of the recipe inversion_* of the same name, whose control they are.
Trained on these alone, a classifier shows what the autoencoder costs, apart from all else that a generator does.
"""

_base_ = './inversion_generate.py'

generator = dict(
    _delete_=True,
    type='synthaug_plugins.RoundTrip',
    model='CompVis/stable-diffusion-v1-4',
    revision='133a221b8aa7292a167afc5127cb63fb5005638b',
    variant='fp16',
    precision='fp16',
)
per_source = 1
