"""BERT's design choices, one change per arm, on BERT-mini.

Question   What do NSP, the mask rate and the position of the norm matter, and each step back to the derivation
           (docs/mlm_loss.md)?
Run        bertgpt train ablations/bert --data.path 'my_text/*.txt' --workdir runs/ablation
           bertgpt train ablations/bert:mask40 --data.path 'my_text/*.txt'    # one arm
Hardware   one GPU, a few hours per arm (estimate)
Expect     Leaving out NSP does not hurt (Liu et al. 2019); masking 40 % is as good or better for larger models
           (Wettig et al. 2023).
Got        Not run.
"""

import dataclasses

from bertgpt.experiments.pretrain import bert_base

from bertgpt.config import arms
from bertgpt.models.bert import BERT_MINI

BASE = dataclasses.replace(
    bert_base.experiment(),
    name="bert_mini",
    model=BERT_MINI,
    data=dataclasses.replace(bert_base.LONG, seq_len=128, validation=0.02, test=0.02),
    steps=100_000,
    compute_dtype="float32",
)
DELTAS = {
    "base": {},
    "no_nsp": {"objective.pair": None},
    "concat": {"objective.pair": None, "data.layout": "concat"},
    "packed": {"objective.pair": None, "data.layout": "packed"},
    "mask40": {"objective.mask_rate": 0.40},
    "all_mask": {"objective.mask_token_rate": 1.0, "objective.random_token_rate": 0.0},
    "pre_norm": {"model.norm_position": "pre"},
    "adam": {"optim.bias_correction": True},
    "relu": {"model.activation": "relu"},
    "plain_head": {"model.mlm_head": "plain"},
    "per_document": {"objective.reduction": "sequence"},
}
ARMS = arms(BASE, DELTAS)
