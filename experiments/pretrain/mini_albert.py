"""ALBERT's recipe at mini size: one shared layer, narrow embeddings, masked n-grams, sentence order.

Question   does ALBERT's pretraining learn on two CPU cores what counting cannot, and sentence order above chance?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_albert.py
           AdamW in place of LAMB, which is for large batches: with a rate of 0.01 it stops at 6.0 (measured).
Hardware   2 CPU cores
Expect     masked LM loss below unigram and bigram counts on the same words; sentence order above 0.5
Got        not run
"""

import dataclasses

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.objectives.mlm import MaskedLM
from experiments.pretrain.mini import ENCODER, VOCAB_SIZE, mini, short_to_long


def experiment() -> Experiment:
    data = short_to_long("swapped_pairs", SentencePiece(vocab_size=VOCAB_SIZE, style="albert"), switch_step=2000)
    model = dataclasses.replace(ENCODER, embed_dim=64, shared_groups=1, mlm_head="transform")
    objective = MaskedLM(mask_rate=0.15, unit="ngram", max_ngram=3, pair="sop")
    return mini("mini_albert", model, objective, data)
