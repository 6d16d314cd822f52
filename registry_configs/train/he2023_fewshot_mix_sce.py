"""`he2023_fewshot_mix` with soft targets on the synthetic part: half cross entropy on the label, half against the zero-shot head's output at T = 2.

The store needs the teacher's logits, from the CLIP that is tuned:
synthaug score stores/rg soft_labels --cfg-options inspectors.0.model=RN50
"""

_base_ = './he2023_fewshot_mix.py'
# Lambda of the paper's SCE is blend; T divides the teacher only, and there is no factor T^2.
synthaug = dict(mix=dict(soft_labels=dict(column='teacher_logits', blend=0.5, temperature=2.0)))
