"""What the recipes inversion_* share: an embedding for each image (Diffusion Inversion: Zhou et al., "Training on Thin Air", 2023).

Not a recipe by itself: the files beside this folder inherit it, and say the image size. The setting is the published one: 5 tokens, 3000 steps per image,
AdamW with learning rate 0.03. How the learning differs from the paper's code:
- An image has a place in the batch for as long as it learns, and nothing moves it but its own gradient. The code learns groups of 100 images, of which a
  step shows 50, and its optimizer moves the others too.
- Every image starts from U(-0.1, 0.1), which is the code's rule for groups of 100, whatever the number of images.
- Noise levels are spread evenly along an image's steps in place of drawn; the VAE runs once per image, and its posterior is drawn from in each step.
- 200 images are at work at a time where the code has 50.
- Networks run in bfloat16 where the GPU has it (precision='fp32' as published). Embeddings are stored as float16.
These recipes have not been run to the end here.
"""

# The model: options of synthaug_plugins.models.text_model.TextModel. Embeddings are of use for this model, revision and image size only.
model = dict(
    name='CompVis/stable-diffusion-v1-4',
    revision='133a221b8aa7292a167afc5127cb63fb5005638b',  # so that the model cannot change
    variant='fp16',  # half the download; leave it out together with precision='fp32'
    compile=False,  # True: about a minute at the start, then 1.4 times as fast on an H200
)
# Images, one folder per class; --data on the command line sets it.
data = None
# Names of the class folders to learn from; None: all.
classes = None
# Images per class, drawn by shots_seed as `synthaug shots` draws them; None: all. More images can be learned later into the same folder.
shots = None
shots_seed = 0
# What the classes are called: a data set whose names are known, or a file. Without them folder names are read as words. Only the sheet says them, unless
# initialise_from does.
dataset = None
names = None
# Every key: the docstring of synthaug_plugins.learning.embeddings_options.EmbeddingTraining.
training = dict(
    tokens=5,
    steps=3000,
    # Images at work at a time; what is learned stays the same. 200 of 128 pixels take 11 GiB, and three times the images per hour of the published 50,
    # which leave an H200 waiting (tools/benchmarks/results/bench_inversion_sd15_h200.txt).
    batch_size=200,
    learning_rate=0.03,
    initialise_from=None,  # or a text, such as '{}', the name of the class: its first states
    fit='squash',
    # dict(window=250, tolerance=0.005) finishes an image early when its loss has fallen by less than half a percent from one window to the next.
    plateau=None,
    precision='auto',  # bf16 where the GPU has it
)
# The sheet, and the figures on the card: so many images, drawn again from their embeddings and from a prompt with the name of their class.
samples = dict(images=20, num_steps=50, prompt='a photo of a {}')
# The same seed, recipe and image give the same embedding (on a GPU nearly).
seed = 0
# For the card of the embeddings.
name = None
licence = None
