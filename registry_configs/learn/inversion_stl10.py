"""STL-10: an embedding for each image, at 256 pixels, for Stable Diffusion 1.4. Needs a GPU.

synthaug learn embeddings inversion_stl10 --data data/stl10/train --out embeddings/stl10
synthaug generate inversion_stl10 --data data/stl10/train --out stores/stl10-inversion

How it differs from the paper: _base_/inversion_learn.py.
"""

_base_ = './_base_/inversion_learn.py'

model = dict(image_size=256)  # as published; the images made of them are stored at 96 pixels
training = dict(batch_size=50)  # four times the pixels: about 11 GiB
