"""STL-10 by Diffusion Inversion: images of 256 pixels from an embedding of each real one, stored at 96. Needs a GPU.

synthaug learn embeddings inversion_stl10 --data data/stl10/train --out embeddings/stl10
synthaug generate inversion_stl10 --data data/stl10/train --out stores/stl10-inversion
synthaug train inversion_stl10 ...

What differs from the paper: _base_/inversion_generate.py. The real images are the 5000 labelled ones.
"""

_base_ = './_base_/inversion_generate.py'

# What the first command above writes; the size is the one that it learned for.
generator = dict(embeddings='embeddings/stl10/embeddings', image_size=256)
batch_size = 32
image = dict(format='png', size=96)
