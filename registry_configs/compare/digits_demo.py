"""Do variants made from a few labelled digits help a small classifier? `python tools/demo.py` makes the folders named here.

synthaug compare digits_demo --out runs/demo/5-shot --jobs 2 --set shots=5 --set root=runs/demo
"""

# These names stand in braces below; --set NAME=VALUE changes one. {seed} is the seed of the run.
values = dict(root='runs/demo', shots=5)
title = 'Digits, {shots} labelled per class'
notes = [
    'Small real handwriting (scikit-learn digits, 8 x 8 pixels), split by position, since the file is ordered by writer: 0 to 1,199 for the generator and the '
    'few labelled images, 1,200 to 1,396 for validation, 1,397 to 1,796 for test.',
    'What the generator had seen: all 1,200 digits of the first part with their labels, far more than the classifier may use. It stands in for a web-scale '
    'model, which has seen nearly everything; a generator trained on the few labelled images alone would know nothing that they do not show. So there are two '
    'arms: in one the generator is not told the class, in the other it is, and the gain of the second comes from labels that the classifier never had. '
    'The text-to-image model and the CLIP model of the last arm had seen the same 1,200 labels, as captions.',
    'What chose the options: 197 validation images, more than the labelled training images. With so few labels in real life there would be fewer to choose on.',
]

train = '../train/digits_resnet.py'
# Each seed draws its own few labelled images, and starts the network and the order of images anew.
seeds = [0, 1, 2]
cfg_options = {
    'train_dataloader.dataset.data_root': '{root}/data/draw-{seed}/{shots}-shot',
    'val_dataloader.dataset.data_root': '{root}/data/val',
    'test_dataloader.dataset.data_root': '{root}/data/test',
}

_classic = [
    dict(type='mmpretrain.LoadImageFromFile'),
    dict(type='mmpretrain.Rotate', angle=10.0, prob=0.5, pad_val=0, interpolation='bilinear'),
    dict(type='mmpretrain.RandomCrop', crop_size=8, padding=1),
    dict(type='mmpretrain.PackInputs'),
]
arms = dict(
    # The recipe as it is: shifts by one pixel.
    real_only=dict(),
    # Stronger augmentation without a generator: rotation on top of the shifts.
    classic=dict(cfg_options={'train_dataloader.dataset.pipeline': _classic}),
    # With probability alpha, a variant takes the place of the real image that it was made from. The generator was not told
    # the class: it knows what digits look like, and the label comes from the real image.
    synthetic=dict(synthaug=dict(mix=dict(store='{root}/stores/draw-{seed}', alpha=0.5, partner='source', select=None))),
    # The same, and the generator was told the class: it brings in what it learned from labels that the classifier never sees.
    synthetic_class_told=dict(synthaug=dict(mix=dict(store='{root}/stores/draw-{seed}-class-told', alpha=0.5, partner='source', select=None))),
    # New images of the class in place of variants: a language model writes sentences with the class name, a text-to-image model draws
    # them, a CLIP filter throws out what it does not recognise (He et al., ICLR 2023). They know nothing of the labelled images.
    text_to_image=dict(synthaug=dict(mix=dict(store='{root}/stores/text-to-image', alpha=0.5, partner='class'))),
)
# Strength decides the sign, and no value is right everywhere: so it is searched, on validation. Rotation is too, to be fair.
_mix = {'mix.select': ['params.sigma = 0.3', 'params.sigma = 0.6', 'params.sigma = 2.4'], 'mix.alpha': [0.3, 0.6]}
search = [
    dict(arm='classic', grid={'cfg_options.train_dataloader.dataset.pipeline.1.angle': [5.0, 15.0]}),
    dict(arm='synthetic', grid=_mix),
    dict(arm='synthetic_class_told', grid=_mix),
    dict(arm='text_to_image', grid={'mix.alpha': [0.3, 0.6]}),
]
