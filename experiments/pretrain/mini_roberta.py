"""RoBERTa's recipe at mini size: byte-level BPE, full sentences, dynamic masking, no sentence pairs.

Question   Does RoBERTa's pretraining beat n-gram baselines on two CPU cores?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_roberta
Hardware   2 CPU cores
Expect     Masked LM loss below the unigram and bigram baselines on the same tokens.
Got        Validation masked LM loss 4.782, accuracy 0.233 (unigram 6.782, bigram 4.894) after 1.7 million tokens, 5
           minutes on one busy core.
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import ENCODER, VOCAB_SIZE, mini, short_to_long

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.objectives.mlm import MaskedLM


def experiment() -> Experiment:
    data = short_to_long("full_sentences", ByteBPE(VOCAB_SIZE), switch_step=1000)
    model = dataclasses.replace(ENCODER, num_types=0, first_position=2, activation="gelu", norm_eps=1e-5)
    return mini("mini_roberta", model, MaskedLM(mask_rate=0.15), data, steps=2000)
