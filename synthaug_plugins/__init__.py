"""Train image classifiers with diffusion-made data, inside the trainers people already use.

Importing this package is cheap on purpose: torch, mmengine and diffusers load where they are used.
"""

__version__ = '0.1.0'
