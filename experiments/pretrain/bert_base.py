"""BERT-base pretraining: masked LM and next-sentence prediction (Devlin et al. 2019, A.2).

Question   Does this codebase reproduce the published recipe?
Run        bertgpt prepare 'wiki_books/*.jsonl.zst' --tokenizer TOKENIZER --out STORE
           bertgpt train pretrain/bert_base --data.short.path STORE --data.long.path STORE
Hardware   16 TPU chips, 4 days (paper); about half a day on 64 A100 GPUs (estimate)
Expect     After fine-tuning, GLUE test average 79.6, SST-2 93.5, MNLI-m 84.6 (Devlin et al. 2019, table 1).
Got        Not run.
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
        # One fixed masking for each of the ten passes over the text, as in the released data.
        objective=MaskedLM(mask_rate=0.15, pair="nsp", static_masks=1),
        # Sequences of 128 tokens for nine tenths of the steps, then of 512.
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
