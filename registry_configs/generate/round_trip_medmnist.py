"""A set of MedMNIST through the autoencoder of inversion_medmnist's model and back: the control for what inversion_medmnist makes, at the same size.

synthaug generate round_trip_medmnist --data data/medmnist/train --out stores/medmnist-round-trip
"""

_base_ = './_base_/round_trip.py'

generator = dict(image_size=128)
image = dict(format='png', size=28)
