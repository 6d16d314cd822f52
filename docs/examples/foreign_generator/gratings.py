"""Images of a foreign generator. Install its package first: pip install docs/examples/foreign_generator

synthaug generate gratings.py --out stores/gratings
"""

# ruff: noqa: C408

# The name that the plugin registered.
generator = dict(
    type='synthaug_plugins.Gratings',
    prompts=dict(type='synthaug_plugins.Basic', templates='a photo of a {}'),  # or Enhanced, ClassNameFree, FromFile
    size=64,
)
classes = ['cat', 'dog']
per_class = 20
# Inspectors, blocks, seeds, resume and export work for a foreign generator as for a built-in one.
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
