"""Zero-shot data of He et al. (ICLR 2023): language enhancement (LE) and the CLIP filter (CF). The files he2023_zeroshot_* inherit it.

They add the data set's class names and wording, three times: the classes of the recipe, the prompts, what the filter asks.
"""

_base_ = './he2023.py'

generator = dict(
    type='synthaug_plugins.TextToImage',
    num_steps=50,
    # LE: a word-to-sentence model writes sentences around the class name, and each becomes a prompt: 'a photo of ' + sentence, or the
    # data set's own wording. The sentences are kept in a file that you can read and edit (its name is printed).
    prompts=dict(
        type='synthaug_plugins.Enhanced',
        model='mrm8488/t5-base-finetuned-common_gen',  # T5-base on CommonGen, the paper's; any instruct model works, see recommended_zeroshot.py
        # 200 per class, all used equally often: 2000 tries are about 10 images of each sentence, as in the paper.
        sentences=200,
        # Class names as they stand. True adds what tells senses apart ('crane, bird'), which the paper does not.
        hints=False,
    ),
)
