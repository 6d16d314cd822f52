"""Erase digits from the embedded text-to-image pipeline, each by itself: about a minute a class on one CPU core.

synthaug learn erasure esd_digits --out models/erased
synthaug generate he2023_fewshot_rg_digits --data my/digits --out stores/erased --cfg-options generator.erasures=models/erased/erasures

What it leaves of the erased class and of the others: tools/benchmarks/results/check_erasure_digits.txt.
"""

model = dict(name='embedded:digits_sd')
# Class names, as prompts say them. --classes on the command line sets it; None: the class folders of data.
classes = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
# What says a class: each iteration takes one of these at random.
prompts = dict(type='synthaug_plugins.Basic', templates='a photo of a {}')
preset = 'lora'  # ours. 'paper', 'diffusers2024' and 'da_fusion' are the published settings, made for Stable Diffusion
training = dict(
    # Cross-attention: how the image answers to the prompt. "esd-u" and "full" need another rate, and harm other digits more (see the table).
    method='esd-x',
    num_steps=10,  # x_t lies on these steps of the pipeline; 50 are published
    checkpoint_steps=25,
)
# A sheet per class: images of it and of these two before and after.
samples = dict(per_class=8, others=['two', 'eight'], num_steps=25, guidance_scale=2.0)
seed = 0
