"""ImageNette by Diffusion Inversion: images of 256 pixels from an embedding of each real one. Needs a GPU.

synthaug learn embeddings inversion_imagenette --data data/imagenette/train --out embeddings/imagenette
synthaug generate inversion_imagenette --data data/imagenette/train --out stores/imagenette-inversion
synthaug train inversion_imagenette ...

What differs from the paper: _base_/inversion_generate.py.
"""

_base_ = './_base_/inversion_generate.py'

# What the first command above writes; the size is the one that it learned for.
generator = dict(embeddings='embeddings/imagenette/embeddings', image_size=256)
batch_size = 32
# The model's images are squares, as its real ones were squashed for learning; 'source' gives each the size and shape of its real image.
image = dict(format='jpg', quality=95, size='source')
