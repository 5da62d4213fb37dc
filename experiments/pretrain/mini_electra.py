"""ELECTRA's recipe at mini size: a generator of half the depth replaces tokens, a discriminator detects them.

Question   Does the discriminator learn to detect replaced tokens on two CPU cores?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_electra
Hardware   2 CPU cores
Expect     Detection above the majority class “original”; the generator's loss below the unigram and bigram baselines.
Got        After 5.1 million tokens, 14 minutes on two thirds of a core: generator 4.145 (unigram 6.534, bigram 4.853);
           discriminator accuracy 0.8950, majority class 0.8734; loss 0.277, class frequencies 0.380; recall 0.29 at
           precision 0.70. With samples at temperature 1 it learns almost nothing in that time: 0.8908, majority 0.8908,
           loss 0.341 and 0.345.
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import ENCODER, VOCAB_SIZE, mini, short_to_long

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.electra import ElectraConfig
from bertgpt.objectives.rtd import ReplacedTokenDetection


def experiment() -> Experiment:
    data = short_to_long("concat", WordPiece(VOCAB_SIZE, limit_alphabet=128), switch_step=1500)
    discriminator = dataclasses.replace(ENCODER, embed_dim=128, pooler="dropout_gelu", activation="gelu")
    generator = dataclasses.replace(discriminator, num_layers=1)
    # With a weight of 50 the shared embedding follows the discriminator alone; the generator stops at 5.5 (measured).
    # A discriminator this small knows no more than the generator; samples at temperature 1 look like text to it.
    objective = ReplacedTokenDetection(discriminator_weight=5.0, temperature=2.0)
    return mini("mini_electra", ElectraConfig(discriminator, generator), objective, data, steps=5000)
