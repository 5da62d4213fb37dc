"""Switch Transformer's recipe at mini size: T5's span corruption with four experts in every second layer.

Question   Are all experts used, and does the model beat n-gram baselines?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_switch
Hardware   2 CPU cores
Expect     Loss of the words in the spans below the unigram and bigram baselines; smallest `router_load` well above 0.
Got        Word loss 4.863, accuracy 0.167 (unigram 6.547, bigram 4.900) after 7.5 million tokens, 12 minutes on a
           busy machine. All experts are used: each receives 0.235 to 0.271 of the tokens in the encoder and 0.218 to
           0.303 in the decoder; at most 0.1 % are dropped.
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
