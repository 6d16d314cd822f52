"""Classifier tuning on the real shots alone (He et al., ICLR 2023, "CT w. init"): a linear head that starts as CLIP's zero-shot classifier.

synthaug train he2023_fewshot_real --work-dir runs/real --cfg-options train_dataloader.dataset.data_root=data/train \
    val_dataloader.dataset.data_root=data/train test_dataloader.dataset.data_root=data/test synthaug.clip.dataset=eurosat

For other shots and seeds set them in both loaders: train_dataloader.dataset.shots=4 val_dataloader.dataset.shots=4.
`synthaug fewshot` runs all shots, seeds and methods at once.
"""

_base_ = './_base_/clip_tuning.py'
# The paper's filter, teacher and student are OpenAI's RN50. train='cached' is the paper's way: no augmentation, the encoder runs once.
synthaug = dict(clip=dict(model='RN50', train='cached'))
