"""Sentiment of sentences from Rotten Tomatoes: the pretrained encoder against the same network from scratch."""

import dataclasses

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.objectives.finetune import Classify
from bertgpt.optim import AdamW
from bertgpt.tasks.baselines import Majority, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification
from experiments.demo.pretrain import MODEL, REVIEWS

BASE = Experiment(
    name="sentiment",
    model=dataclasses.replace(MODEL, dropout=0.1),
    objective=Classify(num_labels=2),
    data=TextClassification(
        REVIEWS,
        labels=("0", "1"),
        names=("negative", "positive"),
        tokenizer="pretrain",
        seq_len=64,
        where="source=rotten_tomatoes",
        strip_html=True,
        validation=0.02,
        test=0.15,
    ),
    optim=AdamW(lr=5e-4, warmup_steps=40, bias_correction=True),
    steps=600,
    batch_size=32,
    evals=(VALIDATION, TEST),
    baselines=(Majority(), TfidfLogisticRegression()),
)
ARMS = arms(BASE, {"scratch": {}, "pretrained": {"init_from": "pretrain"}})
