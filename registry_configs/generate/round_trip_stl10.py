"""STL-10 through the autoencoder of inversion_stl10's model and back: the control for what inversion_stl10 makes, at the same size.

synthaug generate round_trip_stl10 --data data/stl10/train --out stores/stl10-round-trip
"""

_base_ = './_base_/round_trip.py'

generator = dict(image_size=256)
batch_size = 32
image = dict(format='png', size=96)
