"""A word for each class of handwritten digits, from a few images each, for the embedded digits pipeline. About a minute per class on one CPU core.

synthaug learn words dafusion_words_digits --data my/digits --out words/digits

The setting is that of DA-Fusion (Trabucco et al., ICLR 2024) scaled down to a model of 16 pixels; see dafusion_words.py for the published one.
"""

# The pipeline: options of synthaug_plugins.models.text_model.TextModel. Words are of use for this model only.
model = dict(name='embedded:digits_sd')
# Images, one folder per class; --data on the command line sets it.
data = None
# Names of the class folders to learn words for; None: all.
classes = None
# Images per class, drawn by shots_seed as `synthaug shots` draws them; None: all.
shots = None
shots_seed = 0
# The published setting that training starts from.
preset = 'iclr2024'
# What differs from it. Every key: the docstring of synthaug_plugins.learning.words_options.WordTraining.
training = dict(
    # Nothing of the class's name. Words that this model knows; the vectors start from these four in turn.
    initialise_from='bold thin wide digit',
    templates=('a photo of a {}', 'a picture of a {}', 'an image of a {}', 'a scan of a {}', 'a drawing of a {}', 'a handwritten {}', '{}'),
    # Chosen among four settings by tools/check_words.py, see tools/benchmarks/results/check_words_digits.txt.
    vectors=8,
    learning_rate=0.03,
    steps=250,
    hflip=0.0,  # a mirrored digit is no digit
    precision='fp32',
)
# The sheet: samples of each word beside real images of its class.
samples = dict(per_class=8, num_steps=25, guidance_scale=6.0)
# The same seed, recipe and data give the same words.
seed = 0
# For the card of the words.
name = 'digit words'
licence = None
