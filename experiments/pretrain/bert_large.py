"""BERT-large pretraining: the base recipe with 24 layers of width 1024 (Devlin et al. 2019).

Question   Does this codebase reproduce the published recipe at 340M parameters?
Run        bertgpt train pretrain/bert_large --data.short.path STORE --data.long.path STORE --mesh.fsdp 8
Hardware   64 TPU chips, 4 days (paper)
Expect     After fine-tuning, GLUE test average 82.1, SST-2 94.9, MNLI-m 86.7 (Devlin et al. 2019, table 1).
Got        Not run.
"""

import dataclasses

from bertgpt.experiments.pretrain import bert_base

from bertgpt.config import Experiment
from bertgpt.models.bert import BERT_LARGE


def experiment() -> Experiment:
    return dataclasses.replace(
        bert_base.experiment(),
        name="bert_large",
        model=dataclasses.replace(BERT_LARGE, scan=True),
    )
