"""CIFAR-10 through the autoencoder of inversion_cifar10's model and back: the control for what inversion_cifar10 makes, at the same size.

synthaug generate round_trip_cifar10 --data data/cifar10/train --out stores/cifar10-round-trip
"""

_base_ = './_base_/round_trip.py'

generator = dict(image_size=128)
image = dict(format='png', size=32)
