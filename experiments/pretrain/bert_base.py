"""BERT-base pretraining: masked LM + next-sentence prediction (Devlin et al. 2019, A.2).

Question   does this codebase reproduce the published recipe?
Run        bertgpt train experiments/pretrain/bert_base.py --data.short.path STORE --data.long.path STORE
           where STORE is what `bertgpt prepare 'wiki_books/*.jsonl.zst' --tokenizer TOKENIZER --out STORE` wrote
Hardware   16 TPU chips, 4 days (the paper's); 64 GPUs of the A100 class should need about half a day (estimated)
Expect     GLUE test average 79.6, SST-2 93.5, MNLI-m 84.6 after fine-tuning (Devlin et al. 2019, table 1)
Got        not run
"""

import dataclasses

from bertgpt.config import Experiment
from bertgpt.data.mixture import Curriculum
from bertgpt.models.bert import BERT_BASE
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW

LONG = Corpus("data/wiki_books", seq_len=512, layout="pairs", validation=0.001, test=0.001)


def experiment() -> Experiment:
    return Experiment(
        name="bert_base",
        model=BERT_BASE,
        # Each of the ten passes over the text has one masking of its own, as in the released data.
        objective=MaskedLM(mask_rate=0.15, pair="nsp", static_masks=1),
        # Rows of 128 tokens for nine tenths of the updates, then of 512.
        data=Curriculum(short=dataclasses.replace(LONG, seq_len=128), long=LONG, switch_step=900_000),
        optim=AdamW(lr=1e-4, warmup_steps=10_000, weight_decay=0.01, decay="linear"),
        steps=1_000_000,
        batch_size=256,
        compute_dtype="bfloat16",
        eval_every=10_000,
        save_every=10_000,
        keep_last=2,
        keep_best=1,
    )
