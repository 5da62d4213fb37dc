"""BERT-base pretraining: masked LM + next-sentence prediction (Devlin et al. 2019, A.2).

Question   does this codebase reproduce the published recipe?
Run        bertgpt train experiments/pretrain/bert_base.py --data.path 'wiki_books/*.txt' --workdir gs://bucket/runs
           The paper trains at length 128 for 90% of the steps; give --data.seq_len 128 --steps 900000 first, then this
           file with --init_from bert_base --name bert_base_512 --steps 100000.
Hardware   16 TPU chips, 4 days (the paper's); 64 GPUs of the A100 class should need about half a day (estimated)
Expect     GLUE test average 79.6, SST-2 93.5, MNLI-m 84.6 after fine-tuning (Devlin et al. 2019, table 1)
Got        not run
"""

from bertgpt.config import Experiment
from bertgpt.data.corpus import Corpus
from bertgpt.models.bert import BERT_BASE
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="bert_base",
        model=BERT_BASE,
        objective=MaskedLM(mask_rate=0.15, pair="nsp"),
        data=Corpus("data/wiki_books", seq_len=512, rows="pairs", validation=0.001, test=0.001),
        optim=AdamW(lr=1e-4, warmup_steps=10_000, weight_decay=0.01, decay="linear"),
        steps=1_000_000,
        batch_size=256,
        compute_dtype="bfloat16",
        eval_every=10_000,
        save_every=10_000,
        keep_last=2,
        keep_best=1,
    )
