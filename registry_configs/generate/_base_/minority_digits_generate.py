"""What the recipes minority_digits* share: the embedded model, its sampler and who judges. Not a recipe by itself: the files beside this folder inherit it.

The strengths there were chosen by eye and by what `python tools/check_minority.py` prints: with them the mean distance to the five nearest training digits
(pixels in -1..1) rises from 2.2 without guidance to 2.4 or 2.5 (held-out real digits: 2.3), and most neighbours agree with the label of 94 to 96 in a hundred
(without guidance 96 to 97, held-out real digits 95).
"""

generator = dict(
    type='synthaug_plugins.EDM',
    model='embedded:digits_edm',  # or a folder with config.json and model.safetensors
    # EDM's deterministic sampler: 2 * 18 - 1 network calls per image without guidance.
    sampler=dict(num_steps=18, solver='heun'),
)
# Which classes, by the model's names: 'zero' to 'nine'. None takes all of them.
classes = None
# Accepted images wanted per class: a number, or dict(three=50, eight=200).
per_class = 100
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 100
# Images per network call; halved by itself when memory runs out.
batch_size = 250
# Requests allowed per wanted image before a class is left short of its quota.
tries_per_image = 4.0
# The same seed and recipe make the same images.
seed = 0
# What judges every image; rejected ones keep their row and reason in the store. What is rare may be broken, or another class: so a CLIP looks at the label.
inspectors = [
    dict(type='synthaug_plugins.ImageSanity'),
    dict(type='synthaug_plugins.ClipFilter', model='embedded:digits_clip', rule='argmax'),
]
# How images are stored: png loses nothing.
image = dict(format='png')
