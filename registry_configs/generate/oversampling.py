"""Plain oversampling as a store: real images as they are, until every class is as large as the largest. The control for what a generator fills a class with.

synthaug generate oversampling --data my/images --out stores/oversampling
synthaug train long_tail_digits --work-dir runs/oversampled --cfg-options synthaug.mix.store=stores/oversampling ...
"""

# What makes the images: nothing. Each is a real image of its class, in turn.
generator = dict(type='synthaug_plugins.Copies')
# Folder with one folder of real images per class; --data sets it.
data = None
# Class names in label order; None takes the class folders of data.
classes = None
# Every class gets what it lacks of this many: a number, or the images of the largest class.
fill_to = 'largest'
# Images per block: the unit that is redone after a kill, and one shard of the store.
block_size = 1000
# Images at a time.
batch_size = 100
# Requests allowed per wanted image. A copy that an inspector rejects would be rejected again.
tries_per_image = 1.0
# Decides nothing here.
seed = 0
# What judges every image: copies are what they are.
inspectors = []
# How images are stored: png keeps every pixel; size=None keeps the shape.
image = dict(format='png')
