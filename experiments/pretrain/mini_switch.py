"""Switch Transformer's recipe at mini size: T5's span corruption with four experts in every second layer.

Question   do all experts find work, and does the model learn what counting cannot?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_switch.py
Hardware   2 CPU cores
Expect     loss of the words in the spans below unigram and bigram counts; the smallest `router_load` well above 0
Got        not run
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
