"""Rare handwritten digits from pure noise: the embedded model, guided by itself. Nothing is learned before. A minute on one CPU core.

synthaug generate minority_digits_self_guided --out stores/digits-self-guided

Self-guided minority sampling (Um and Ye, ECCV 2024).
"""

_base_ = './_base_/minority_digits_generate.py'

generator = dict(
    # Every option: the docstring of synthaug_plugins.generators.self_guided.SelfGuided.
    guidance=[
        dict(
            type='synthaug_plugins.SelfGuided',
            weight=0.8,  # 2 is too much: a sixth of the labels is lost
            every=5,  # it acts at steps 0, 5, 10 and 15
            sigma=1.0,  # where guesses are noised again; published for larger images: 25
            distance=dict(type='synthaug_plugins.MSE'),  # 8 pixels are too few for LPIPS
        )
    ]
)
