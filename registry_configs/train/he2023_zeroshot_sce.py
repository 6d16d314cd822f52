"""`he2023_zeroshot` with soft targets: half cross entropy on the label, half against the zero-shot head's output at T = 2 (SCE).

The store needs the teacher's logits, from the CLIP that is tuned:
synthaug score stores/lecf soft_labels --cfg-options inspectors.0.model=RN50
"""

_base_ = './he2023_zeroshot.py'
train_dataloader = dict(dataset=dict(soft_labels=dict(column='teacher_logits', blend=0.5, temperature=2.0)))
