"""CIFAR-10 through the autoencoder of inversion_cifar10's model and back: the control for what inversion_cifar10 makes, at the same size.

synthaug generate round_trip_cifar10 --data data/cifar10/train --out stores/cifar10-round-trip

Trained on these alone, a classifier shows what the autoencoder costs, apart from all else that a generator does.
"""

_base_ = './inversion_cifar10.py'

generator = dict(
    _delete_=True,
    type='synthaug_plugins.RoundTrip',
    model='CompVis/stable-diffusion-v1-4',
    revision='133a221b8aa7292a167afc5127cb63fb5005638b',
    variant='fp16',
    precision='fp16',
    image_size=128,
)
per_source = 1
