"""A CLIP's logits for every class beside each image, to train on as soft labels (He et al. 2023, SCE). Rejects nothing.

synthaug score stores/mine soft_labels
"""

# Train with: synthaug = dict(mix=dict(store='stores/mine', soft_labels=dict(column='teacher_logits', blend=0.5, temperature=2.0)))
# Every option: the docstring of synthaug_plugins.curation.teacher.SoftLabels.
inspectors = [
    dict(
        type='synthaug_plugins.SoftLabels',
        model='RN50',  # the CLIP whose zero-shot head teaches; He et al. take the one that they tune
        top_k=None,  # the k largest logits only: less room where classes are many
    ),
]
