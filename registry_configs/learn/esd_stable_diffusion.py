"""Erase your classes from Stable Diffusion 1.5, each by itself, so that what it makes of a class comes from your images and words alone.

synthaug learn erasure esd_stable_diffusion --data my/images --out models/erased
synthaug learn words dafusion_words --data my/images --out words/erased --cfg-options model.erasures=models/erased/erasures

ESD: Gandikota et al., ICCV 2023. DA-Fusion (Trabucco et al., ICLR 2024) erases every class with preset = 'da_fusion', about two hours and 3.4 GB
per class. This recipe's low-rank erasure takes megabytes; its learning rate was found on the embedded pipeline and has not been measured here on
Stable Diffusion. Look at the sheets in models/erased/samples.
"""

# The pipeline: options of synthaug_plugins.models.text_model.TextModel. Erasures are of use for this model and revision only.
model = dict(
    name='stable-diffusion-v1-5/stable-diffusion-v1-5',
    revision='451f4fe16113bff5a5d2269ed5ad43b0592e9a14',  # so that the model cannot change
    variant='fp16',  # half the download
)
# Class names; --classes on the command line sets them. None: the class folders of data, of which only the names are read.
classes = None
data = None
# What says a class, and further words for some: synonyms = dict(car=['automobile']). Folder names that are no words: give dataset= or names=.
prompts = dict(type='synthaug_plugins.Basic', templates=['a photo of a {}', '{}'])
synonyms = dict()
preset = 'lora'  # ours. 'paper', 'diffusers2024' and 'da_fusion' are the published settings: full weights, gigabytes per class
training = dict(
    # 'esd-u' erases a class however it is asked for, by learned words too, and harms other classes more. The paper takes it for objects, 'esd-x' for styles.
    method='esd-x',
    gradient_checkpointing=False,  # True needs less memory
    precision='auto',  # bf16 where the GPU has it
)
# A sheet per class: images of it and of two others before and after.
samples = dict(per_class=4, others=2, num_steps=25, guidance_scale=7.5)
# The same seed and recipe give the same weights (on a GPU nearly).
seed = 0
