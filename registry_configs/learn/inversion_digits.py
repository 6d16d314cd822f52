"""An embedding for each image of handwritten digits, for the embedded digits pipeline: about 2 minutes for a hundred images on one CPU core.

synthaug learn embeddings inversion_digits --data my/digits --out embeddings/digits

The setting is that of Diffusion Inversion (Zhou et al. 2023) scaled down to a model of 16 pixels; see inversion_cifar10.py for the published one.
"""

# The model: options of synthaug_plugins.models.text_model.TextModel. Embeddings are of use for this model and image size only.
model = dict(name='embedded:digits_sd')
# Images, one folder per class; --data on the command line sets it.
data = None
# Names of the class folders to learn from; None: all.
classes = None
# Images per class, drawn by shots_seed as `synthaug shots` draws them; None: all.
shots = None
shots_seed = 0
# What differs from the published setting. Every key: the docstring of synthaug_plugins.learning.embeddings_options.EmbeddingTraining.
training = dict(
    # Chosen on three training images of each digit, by how far samples from their embeddings are from them (root mean square difference, 0 to 255; samples of
    # 'a photo of a {}': 65.5; through the VAE alone: 2.6; standard errors about 2.5). 300 steps with a learning rate of 0.03 (published): 53.9, 0.1: 44.3,
    # 0.2: 39.7. 600 steps with 0.1: 39.0.
    steps=300,
    learning_rate=0.2,
    precision='fp32',
)
# The sheet, and the figures on the card.
samples = dict(images=20, num_steps=25)
# The same seed, recipe and image give the same embedding.
seed = 0
# For the card of the embeddings.
name = 'digit embeddings'
licence = None
