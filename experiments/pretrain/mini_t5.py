"""T5 v1.1's recipe at mini size: span corruption with an encoder and a decoder.

Question   Does span corruption beat n-gram baselines on two CPU cores?
Run        pip install 'bertgpt[demo]' && bertgpt train pretrain/mini_t5
           Sequences have 12 tokens and one span of 3, from the first step to the last. Sequences of 512 tokens with 28
           spans need more than minutes to learn (39 tokens with 4 spans: word accuracy 0.04 after 0.75 million tokens,
           measured), and a model trained on one span per sequence cannot read several (loss 9.0, measured).
Hardware   2 CPU cores
Expect     Loss of the words in the spans below the unigram and bigram baselines, which see the true left neighbour.
Got        Word loss 4.814, accuracy 0.170 (unigram 6.547, bigram 4.900) after 5.8 million tokens, 20 minutes on one
           busy core.
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import SIZE, TEXT, VOCAB_SIZE, mini

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.span import SpanCorruption
from bertgpt.training.optim import Adafactor

SPANS = SpanCorruption(noise_rate=0.25, mean_span=3.0, z_loss=1e-4)
RAW = SPANS.raw_length(11)
V1_1 = {"activation": "gelu_tanh", "gated": True, "tied": False, "dropout": 0.0, "max_len": RAW}
MODEL = T5Config(**SIZE | {"d_ff": 384}, num_decoder_layers=2, head_dim=64, **V1_1)


def experiment() -> Experiment:
    data = dataclasses.replace(TEXT, layout="tokens", seq_len=RAW, tokenizer=SentencePiece(vocab_size=VOCAB_SIZE))
    base = mini("mini_t5", MODEL, SPANS, data, steps=5000, optim=Adafactor(lr=1.0, warmup_steps=1000))
    return dataclasses.replace(base, batch_size=96)
