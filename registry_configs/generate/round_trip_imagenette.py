"""ImageNette through the autoencoder of inversion_imagenette's model and back: the control for what inversion_imagenette makes, at the same size.

synthaug generate round_trip_imagenette --data data/imagenette/train --out stores/imagenette-round-trip
"""

_base_ = './_base_/round_trip.py'

generator = dict(image_size=256)
batch_size = 32
image = dict(format='jpg', quality=95, size='source')
