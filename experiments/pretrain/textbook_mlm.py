"""The masked language model exactly as it is derived: ReLU feed-forward, scores e_wᵀh, the summed loss J.

Question   what do the descendants' changes (GELU, head transform and bias, mean loss, NSP) buy over the formula?
           Compare with experiments/ablations/bert.py, whose arms undo them one at a time.
Run        bertgpt train experiments/pretrain/textbook_mlm.py --data.path 'my_text/*.txt'
Hardware   one 24 GB GPU, about a day (estimated from FLOPs; not run)
Expect     no published number: it is the derivation, docs/mlm_loss.md, as a program
Got        not run at this size; the loss and its gradients are tested against the formula in float64
"""

import dataclasses

from bertgpt.config import Experiment
from bertgpt.models.bert import BERT_SMALL
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="textbook_mlm",
        model=dataclasses.replace(BERT_SMALL, activation="relu", mlm_head="plain", num_types=0),
        objective=MaskedLM(reduction="sum"),
        data=Corpus("data/corpus", seq_len=128, layout="concat"),
        # J is a sum: its gradient is as large as the batch, which Adam's normalisation and the clip take out.
        optim=AdamW(lr=1e-4, warmup_steps=10_000),
        steps=250_000,
        batch_size=256,
        eval_every=10_000,
        save_every=10_000,
        keep_best=1,
    )
