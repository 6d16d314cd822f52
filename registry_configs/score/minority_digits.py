"""Minority score of handwritten digits, by the embedded model: which are written in a rare way. Writes minority_score.

synthaug score my/digits minority_digits --out my/scores.parquet

synthaug score stores/digits-edm minority_digits
"""

# Every option: the docstring of synthaug_plugins.curation.minority_score.MinorityScore.
inspectors = [
    dict(
        type='synthaug_plugins.MinorityScore',
        model='embedded:digits_edm',
        sigma=6.5,
        draws=5,
        distance=dict(type='synthaug_plugins.MSE'),  # 8 pixels are too few for LPIPS
    ),
]
