"""T5 v1.1 pretraining: span corruption (Raffel et al. 2020 §3.1; released v1.1 settings).

Question   Does the text-to-text denoiser reproduce?
Run        bertgpt train pretrain/t5_v1_1:base --data.path STORE --mesh.fsdp 8
Hardware   TPU v3 pod slices (paper)
Expect     T5-base (v1.0): GLUE average 82.7, SQuAD 85.44/92.08, SuperGLUE 76.2 (Raffel et al. 2020, table 14).
Got        Not run.
"""

import dataclasses

from bertgpt.config import Experiment, arms
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.models.t5 import T5_V1_1_BASE, T5_V1_1_LARGE, T5_V1_1_SMALL
from bertgpt.objectives.span import SpanCorruption
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import Adafactor

SPANS = SpanCorruption(noise_rate=0.15, mean_span=3.0, z_loss=1e-4)
RAW = SPANS.raw_length(512)  # 568 tokens of text become 512 input and 114 target tokens, without padding
BASE = Experiment(
    name="t5_v1_1",
    model=dataclasses.replace(T5_V1_1_BASE, dropout=0.0, max_len=RAW),
    objective=SPANS,
    data=Corpus("data/c4", SentencePiece(), seq_len=RAW, layout="tokens", validation=0.0005, test=0.0),
    optim=Adafactor(),
    steps=1_000_000,
    batch_size=2048,
    compute_dtype="bfloat16",
    eval_every=10_000,
    save_every=5_000,
    keep_last=2,
    keep_best=1,
)
ARMS = arms(BASE, {
    "small": {"model": dataclasses.replace(T5_V1_1_SMALL, dropout=0.0, max_len=RAW)},
    "base": {},
    "large": {"model": dataclasses.replace(T5_V1_1_LARGE, dropout=0.0, max_len=RAW, scan=True)},
})  # fmt: skip
