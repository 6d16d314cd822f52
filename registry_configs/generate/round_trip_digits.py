"""Digits through the autoencoder of inversion_digits's model and back: the control for what inversion_digits makes, at the same size.

synthaug generate round_trip_digits --data data/digits/5-shot --out stores/digits-round-trip

Trained on these alone, a classifier shows what the autoencoder costs, apart from all else that a generator does.
"""

_base_ = './inversion_digits.py'

generator = dict(
    _delete_=True,
    type='synthaug_plugins.RoundTrip',
    model='embedded:digits_sd',
)
per_source = 1
