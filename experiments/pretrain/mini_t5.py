"""T5 v1.1's recipe at mini size: span corruption with an encoder and a decoder.

Question   does span corruption learn on two CPU cores what counting cannot?
Run        pip install 'bertgpt[demo]' && bertgpt train experiments/pretrain/mini_t5.py
Hardware   2 CPU cores
Expect     loss of the words in the spans below unigram and bigram counts, whose left neighbour is always the true one
Got        not run
"""

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.span import SpanCorruption
from bertgpt.optim import Adafactor
from experiments.pretrain.mini import SIZE, VOCAB_SIZE, mini, short_to_long

SPANS = SpanCorruption(noise_rate=0.15, mean_span=3.0, z_loss=1e-4)
V1_1 = {"activation": "gelu_tanh", "gated": True, "tied": False, "dropout": 0.0, "max_len": 64}
MODEL = T5Config(**SIZE | {"d_ff": 384}, num_decoder_layers=2, head_dim=64, **V1_1)


def experiment() -> Experiment:
    data = short_to_long("tokens", SentencePiece(vocab_size=VOCAB_SIZE), switch_step=3000)
    return mini("mini_t5", MODEL, SPANS, data, steps=5000, optim=Adafactor(lr=3.0))
