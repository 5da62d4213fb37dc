"""The masked language model exactly as derived: ReLU feed-forward, logits e_wᵀh, the summed loss J.

Question   What do the later changes (GELU, head transform and bias, mean loss, NSP) bring over the formula?
           Compare with ablations/bert, whose arms undo them one at a time.
Run        bertgpt train pretrain/textbook_mlm --data.path 'my_text/*.txt'
Hardware   one 24 GB GPU, about a day (estimated from FLOPs)
Expect     No published number: this is the derivation in docs/mlm_loss.md as a program.
Got        Not run at this size. Loss and gradients are tested against the formula in float64.
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
        # J is a sum, so its gradient grows with the batch; Adam's normalisation and clipping cancel this.
        optim=AdamW(lr=1e-4, warmup_steps=10_000),
        steps=250_000,
        batch_size=256,
        eval_every=10_000,
        save_every=10_000,
        keep_best=1,
    )
