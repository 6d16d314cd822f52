"""CIFAR-100 through the autoencoder of inversion_cifar100's model and back: the control for what inversion_cifar100 makes, at the same size.

synthaug generate round_trip_cifar100 --data data/cifar100/train --out stores/cifar100-round-trip
"""

_base_ = './_base_/round_trip.py'

generator = dict(image_size=128)
image = dict(format='png', size=32)
