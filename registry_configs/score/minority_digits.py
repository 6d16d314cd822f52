"""Minority score of handwritten digits, by the embedded model: which are written in a rare way. Writes minority_score.

synthaug score my/digits minority_digits --out my/scores.parquet

synthaug score stores/digits-edm minority_digits
"""

# Every option: the docstring of synthaug_plugins.curation.minority_score.MinorityScore.
inspectors = [
    dict(
        type='synthaug_plugins.MinorityScore',
        model='embedded:digits_edm',
        sigma=1.0,  # 6.5 leaves nothing of 8 x 8 pixels; at 1.0 the score agrees best with the distance to other digits
        draws=20,  # of 5, two seeds agree little at so low a noise (rank correlation 0.65; of 20: 0.87)
        distance=dict(type='synthaug_plugins.MSE'),  # 8 pixels are too few for LPIPS
    ),
]
