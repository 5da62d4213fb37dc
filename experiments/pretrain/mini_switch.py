"""Switch Transformer's recipe at mini size: T5's span corruption with four experts in every second layer.

Question   do all experts find work, and does the model learn what counting cannot?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_switch.py
Hardware   2 CPU cores
Expect     loss of the words in the spans below unigram and bigram counts; the smallest `router_load` well above 0
Got        word loss 4.881, accuracy 0.168 (unigram 6.557, bigram 4.917) after 7.5 million tokens, 14 minutes of one
           core (5,000 updates took 11.7 and were at 4.945). All experts work: shares of tokens 0.245 to 0.255 in the
           encoder, 0.216 to 0.276 in the decoder, 0.06 % dropped at most
"""

import dataclasses

from bertgpt.experiments.pretrain import mini_t5

from bertgpt.config import Experiment
from bertgpt.layers.moe import Experts


def experiment() -> Experiment:
    sparse = {"gated": False, "tied": True, "activation": "relu", "init_scale": 0.1, "truncated_init": True}
    model = dataclasses.replace(mini_t5.MODEL, experts=Experts(4, dropout=0.0), **sparse)
    objective = dataclasses.replace(mini_t5.SPANS, z_loss=0.0, load_balance=1e-2)
    return dataclasses.replace(mini_t5.experiment(), name="mini_switch", model=model, objective=objective, steps=6500)
