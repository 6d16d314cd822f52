"""STL-10 through the autoencoder of inversion_stl10's model and back: the control for what inversion_stl10 makes, at the same size.

synthaug generate round_trip_stl10 --data data/stl10/train --out stores/stl10-round-trip

Trained on these alone, a classifier shows what the autoencoder costs, apart from all else that a generator does.
"""

_base_ = './inversion_stl10.py'

generator = dict(
    _delete_=True,
    type='synthaug_plugins.RoundTrip',
    model='CompVis/stable-diffusion-v1-4',
    revision='133a221b8aa7292a167afc5127cb63fb5005638b',
    variant='fp16',
    precision='fp16',
    image_size=256,
)
per_source = 1
