"""Minority score (Um et al. 2024): how rare each image is to a diffusion model. Writes minority_score. Needs LPIPS: pip install 'synthaug-plugins[metrics]'.

synthaug score my/images minority --out my/scores.parquet

synthaug score stores/mine minority --cfg-options inspectors.0.model=models/cifar10/model
"""

# Rejects nothing. High scores mark rare images and broken ones alike: select by minority_score beside a filter that checks the label.
# Every option: the docstring of synthaug_plugins.curation.minority_score.MinorityScore.
inspectors = [
    dict(
        type='synthaug_plugins.MinorityScore',
        model='models/mine/model',  # a folder with config.json and model.safetensors, or a text-to-image pipeline
        sigma=6.5,  # as published, about: place 60 of 100 of the linear schedule is 6.37
        draws=5,  # of noise for each image
        distance=dict(type='synthaug_plugins.LPIPS', network='vgg'),  # 'alex' costs less; MSE below 32 pixels; ClipCosine, TimmCosine
        use_labels=None,  # tell the model the class where it takes labels
    ),
]
