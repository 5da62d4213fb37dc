"""Switch Transformer's recipe at mini size: T5's span corruption with four experts in every second layer.

Question   do all experts find work, and does the model learn what counting cannot?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_switch.py
Hardware   2 CPU cores
Expect     loss of the words in the spans below unigram and bigram counts; the smallest `router_load` well above 0
Got        word loss 5.339, accuracy 0.134 after 1,500 updates, 1.7 million tokens, 3.3 minutes on one core (unigram
           6.557, bigram 4.917, not yet beaten; mini_t5 has 5.313 at the same point). All experts work: shares of
           tokens 0.16 to 0.33 in the encoder, 0.23 to 0.27 in the decoder, 0.3 % dropped at most
"""

import dataclasses

from bertgpt.config import Experiment
from bertgpt.layers.moe import Experts
from experiments.pretrain import mini_t5


def experiment() -> Experiment:
    sparse = {"gated": False, "tied": True, "activation": "relu", "init_scale": 0.1, "truncated_init": True}
    model = dataclasses.replace(mini_t5.MODEL, experts=Experts(4, dropout=0.0), **sparse)
    objective = dataclasses.replace(mini_t5.SPANS, z_loss=0.0, load_balance=1e-2)
    return dataclasses.replace(mini_t5.experiment(), name="mini_switch", model=model, objective=objective, steps=1500)
