"""Phase-wise training (He et al., ICLR 2023, section 4), the phase on real images; he2023_zeroshot is the one on synthetic images.

Synthetic first, then real:
synthaug train he2023_zeroshot --work-dir runs/phase-1 ...
synthaug train he2023_fewshot_phase_real --work-dir runs/phase-2 --cfg-options load_from=runs/phase-1/epoch_30.pth ...
The other order: this recipe first, then he2023_zeroshot with load_from.

30 epochs and lr 2e-3 in each phase, as published. The paper finds mix training better than both orders.
"""

_base_ = './he2023_fewshot_real.py'
optim_wrapper = dict(optimizer=dict(lr=2e-3))
