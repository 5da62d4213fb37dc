"""What each of BERT's choices is worth, one change at a time over BERT-mini.

Question   NSP or not, how much to mask, where to normalise, and the steps back to the derivation (docs/mlm_loss.md)
Run        bertgpt train experiments/ablations/bert.py --data.path 'my_text/*.txt' --workdir runs/ablation
           bertgpt train experiments/ablations/bert.py:mask40        one arm; all of them report into one table
Hardware   one GPU, a few hours an arm (estimated)
Expect     RoBERTa: no_nsp does not hurt; Wettig et al. 2023: 40% masking is as good or better for larger models
Got        not run
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
