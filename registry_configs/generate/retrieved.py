"""Other real images as a store: photos that you found for your classes, by a search of the web or of a large collection. The control for a generator that
learned from such images: does it add to what one could have taken from them?

synthaug generate retrieved --data my/found --out stores/found
synthaug train my_recipe.py --work-dir runs/found --mix stores/found --cfg-options synthaug.mix.sources=any

The second command says that the images come from elsewhere: by default variants of images that are not in the training set are left out.
"""

_base_ = './oversampling.py'

# Folder with one folder per class of what was found; --data sets it. In a comparison: once=True, so that validation and test images among it are refused.
data = None
# Each image once.
fill_to = None
per_source = 1
# What judges every image. Searches bring other things than were asked for: dict(type='synthaug_plugins.ClipFilter', model='ViT-B-32/openai', ...) looks.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
