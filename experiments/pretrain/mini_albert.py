"""ALBERT's recipe at mini size: one shared layer, masked n-grams, sentence order.

Question   does ALBERT's pretraining learn on two CPU cores what counting cannot, and sentence order above chance?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_albert.py
           Embeddings as wide as the layer, for a plain head: narrow ones stop at 6.0, with LAMB too (measured).
Hardware   2 CPU cores
Expect     masked LM loss below unigram and bigram counts on the same words; sentence order above 0.5
Got        validation masked LM loss 5.533 on n-grams, 5.567 on single tokens: below unigram (6.427), not below bigram
           (5.015) after 2.5 million tokens, 9 minutes on one busy core; sentence order 0.513 ± 0.009, chance within
           the noise
"""

import dataclasses

from bertgpt.config import Eval, Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.objectives.mlm import MaskedLM
from experiments.pretrain.mini import ADAM, ENCODER, VOCAB_SIZE, mini, short_to_long


def experiment() -> Experiment:
    data = short_to_long("swapped_pairs", SentencePiece(vocab_size=VOCAB_SIZE, style="albert"), switch_step=1000)
    # Shared layers are cheap in parameters, so ALBERT's are wide. At width 128 the loss stops at 5.45 (7,000 updates).
    model = dataclasses.replace(ENCODER, shared_groups=1, d_model=256, num_heads=4, d_ff=1024)
    objective = MaskedLM(mask_rate=0.15, unit="ngram", max_ngram=3, pair="sop")
    base = mini("mini_albert", model, objective, data, steps=5000, optim=dataclasses.replace(ADAM, lr=2e-3))
    # Counts see the true left neighbour of a word, the model of an n-gram's later words does not: so single tokens too.
    single = Eval("single", "validation", max_batches=200, objective=MaskedLM(mask_rate=0.15))
    return dataclasses.replace(base, evals=(*base.evals, single))
