"""ALBERT's recipe at mini size: one shared layer, masked n-grams, sentence order.

Question   Does ALBERT's pretraining beat n-gram baselines on two CPU cores, and sentence order beat chance?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_albert
           Embeddings are as wide as the layer, for the plain head: narrow ones stop at 6.0, also with LAMB (measured).
Hardware   2 CPU cores
Expect     Masked LM loss below the unigram and bigram baselines on the same tokens; sentence order above 0.5.
Got        After 4.9 million tokens, 24 minutes on a busy machine: masked LM loss on single tokens 4.782, accuracy 0.247
           (unigram 6.438, bigram 4.999); on n-grams 5.027, 0.217 (unigram 6.427, bigram 5.022, which conditions on the
           true left neighbour of every token). Sentence order 0.522 ± 0.009, majority class 0.503. With layers of width
           128 and 7,000 steps it was 0.546 ± 0.009, loss 0.687, but the masked LM loss 5.453 (measured on text whose
           white space was collapsed).
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import ADAM, ENCODER, VOCAB_SIZE, mini, short_to_long

from bertgpt.config import Eval, Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.objectives.mlm import MaskedLM


def experiment() -> Experiment:
    data = short_to_long("swapped_pairs", SentencePiece(vocab_size=VOCAB_SIZE, style="albert"), switch_step=1000)
    # Shared layers are cheap in parameters, so ALBERT's are wide. At width 128 the loss stops at 5.45 (7,000 steps).
    model = dataclasses.replace(ENCODER, shared_groups=1, d_model=256, num_heads=4, d_ff=1024)
    objective = MaskedLM(mask_rate=0.15, unit="ngram", max_ngram=3, pair="sop")
    base = mini("mini_albert", model, objective, data, steps=5000, optim=dataclasses.replace(ADAM, lr=2e-3))
    # The bigram sees the true left neighbour, the model inside an n-gram does not: evaluate on single tokens too.
    single = Eval("single", "validation", max_batches=200, objective=MaskedLM(mask_rate=0.15))
    return dataclasses.replace(base, evals=(*base.evals, single))
