"""EuroSAT through the autoencoder of inversion_eurosat's model and back: the control for what inversion_eurosat makes, at the same size.

synthaug generate round_trip_eurosat --data data/eurosat/train --out stores/eurosat-round-trip
"""

_base_ = './_base_/round_trip.py'

generator = dict(image_size=128)
image = dict(format='png', size=64)
