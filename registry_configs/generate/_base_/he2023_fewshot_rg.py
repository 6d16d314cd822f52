"""Few-shot data of He et al. (ICLR 2023) by real guidance (RG): each image starts from a noised real one. The files he2023_fewshot_rg_* inherit it.

They add the data set's wording. --data names the few real images, a folder of class folders, with 1 to 16 images in every class.
"""

_base_ = './he2023.py'

generator = dict(
    type='synthaug_plugins.RealGuidance',
    # The paper's start by the number of real images per class: 15, 20, 35, 40 or 50 of 100 steps run for 16, 8, 4, 2 or 1 of them.
    # 'auto' counts yours.
    shots='auto',
    # 'paper' takes the share of steps as it stands: 0.15 to 0.5. 'snr_matched' starts at the noise that GLIDE starts from, measured by
    # signal-to-noise ratio: much closer to the real image, since latents of Stable Diffusion drown at other steps than GLIDE's pixels.
    strength_map='paper',
    sampler=dict(num_steps=100),  # of the full way, of which the last 15 to 50 run
    prompts=dict(type='synthaug_plugins.Basic', hints=False),  # the plain class prompt: with real guidance the paper uses no sentences
    fit='crop',  # how a real image becomes a square: 'crop' the centre, or 'squash'
)
# Folder with one folder of real images per class; --data sets it. The class names are its folders, spelled as the data set spells them.
data = None
# RG is used alone in the paper, 800 images per class whatever the shots: 50 variants of each of 16 images, 800 of one.
# Its other way (RF: language enhancement, then dropping what looks like another class's real images) is dict(type='synthaug_plugins.RealFilter').
inspectors = [dict(type='synthaug_plugins.ImageSanity')]
