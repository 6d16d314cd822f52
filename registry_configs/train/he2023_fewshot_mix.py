"""Mix training (He et al., ICLR 2023, section 4): 32 real and 512 synthetic images in every step, loss = mean(real) + mean(synthetic).

synthaug generate he2023_fewshot_rg_eurosat --data data/shots --out stores/rg
synthaug train he2023_fewshot_mix --work-dir runs/mix --cfg-options synthaug.mix.store=stores/rg ...the folders as in he2023_fewshot_real

An epoch is one pass over the synthetic images; AdamW, lr 1e-3, weight decay 0.1, cosine, 30 epochs, gradients clipped at norm 1, as published.
The best epoch is chosen on validation images; the paper's code takes it on the test images (he2023_fewshot_mix_paper_compat).
"""

_base_ = './he2023_fewshot_real.py'
synthaug = dict(mix=dict(store='stores/he2023_fewshot_rg', mode='two_stream', ratio=(32, 512), epoch_steps='synthetic'))
