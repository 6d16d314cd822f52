"""Digits from sentences (LE of He et al. 2023): a language model writes around the class name, and each sentence is a prompt. About a minute on one CPU core.

synthaug generate he2023_le_digits --out stores/digits-le
"""

_base_ = './he2023_basic_digits.py'

generator = dict(
    prompts=dict(
        _delete_=True,  # nothing of the base's prompts remains
        type='synthaug_plugins.Enhanced',
        # Words in, sentence out: 'a three' becomes 'a bold three leaning to the left'. Stands for the paper's T5, mrm8488/t5-base-finetuned-common_gen.
        model='embedded:digits_t5',
        sentences=20,  # per class; the paper has 200. They are kept in a file that you can read and edit (its name is printed).
        template='a photo of {}',
    ),
)
