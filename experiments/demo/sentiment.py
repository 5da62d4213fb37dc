"""Sentiment of sentences from Rotten Tomatoes: the pretrained encoder against the same network from scratch.

Question   does fine-tuning work end to end, and what are a few million tokens of pretraining worth?
Run        bertgpt train experiments/demo/pretrain.py experiments/demo/sentiment.py
Hardware   2 CPU cores
Expect     no published number: the split is our own. TF-IDF + logistic regression is what a small network must beat
Got        test accuracy, loss: scratch 0.741, 0.551; pretrained 0.724, 0.539; TF-IDF 0.762. After the longer
           pretraining 0.732, 0.533: the test loss falls, accuracy does not rise (1,274 texts: ± 0.012)
"""

import dataclasses

from bertgpt.experiments.demo.pretrain import MODEL, REVIEWS

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.baselines import Majority, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.optim import AdamW

BASE = Experiment(
    name="sentiment",
    model=dataclasses.replace(MODEL, dropout=0.1),
    objective=Classify(num_labels=2),
    data=TextClassification(
        REVIEWS,
        labels=("0", "1"),
        names=("negative", "positive"),
        tokenizer="pretrain.full",
        seq_len=64,
        where="source=rotten_tomatoes",
        strip_html=True,
        validation=0.05,
        test=0.15,
    ),
    optim=AdamW(lr=1e-3, warmup_steps=40, bias_correction=True),
    steps=300,
    batch_size=32,
    evals=(VALIDATION, TEST),
    baselines=(Majority(), TfidfLogisticRegression()),
    eval_every=100,
)
ARMS = arms(BASE, {"scratch": {}, "pretrained": {"init_from": "pretrain.full"}})
