"""The ablation of DA-Fusion (Trabucco et al., ICLR 2024) on your images with Stable Diffusion: words, intensities, alpha, M. Needs a GPU, and days.

synthaug compare dafusion --data my/images --out runs/ablation        # my/images holds train/ and test/ (and perhaps val/), a folder per class in each

As published: 1, 2, 4, 8 and 16 shots, seeds 0 to 7, a head on a frozen ResNet-50, the mean of per-class accuracies. For each of the 40 draws it learns two
words per class (2000 steps of 8 images each; the second on the model that has the class erased) and makes 60 variants of every shot. Start with fewer:
copy this file (synthaug init compare/dafusion) and cut shots, seeds and arms; what no arm names is not made. It has not been run to the end here;
dafusion_digits has.
"""

_base_ = './_base_/dafusion.py'

title = 'DA-Fusion, {shots} labelled per class'
notes = 'Words and variants see the shots of a draw and nothing else. What Stable Diffusion had seen of these classes, nobody knows.'

train = 'dafusion_resnet50'
shots = [1, 2, 4, 8, 16]
seeds = [0, 1, 2, 3, 4, 5, 6, 7]

_variants = {'generator.words': '{words}', 'per_source': 10}
_named = {**_variants, 'generator.words': None}
made = dict(
    words=dict(kind='words', recipe='dafusion_words'),
    # 20 of each shot; arms that take fewer take the first ones.
    variants=dict(kind='store', recipe='dafusion', cfg_options={**_variants, 'per_source': 20}),
    variants_k1=dict(kind='store', recipe='dafusion', cfg_options={**_variants, 'generator.t0': [0.5]}),
    variants_named=dict(kind='store', recipe='dafusion', cfg_options=_named),
    # A model per class that cannot draw it, for all draws; the words of a draw are then learned on these.
    erasure=dict(kind='erasure', recipe='esd_stable_diffusion', once=True, cfg_options={'classes': None}),
    words_erased=dict(kind='words', recipe='dafusion_words', cfg_options={'model.erasures': '{erasure}'}),
    variants_erased=dict(kind='store', recipe='dafusion', cfg_options={**_variants, 'generator.words': '{words_erased}', 'generator.erasures': '{erasure}'}),
    guided=dict(kind='store', recipe='dafusion', cfg_options={**_named, 'generator.t0': [0.5]}),
)
