"""ALBERT-base v2 pretraining: shared layers, masked n-grams, sentence order, LAMB (Lan et al. 2020; released code).

Question   Does a model with about a ninth of BERT's parameters reach the published scores?
Run        bertgpt train pretrain/albert_base --data.path STORE
Hardware   64 to 512 TPU v3 chips (paper)
Expect     After fine-tuning, GLUE dev SST-2 92.9, MNLI 84.6; SQuAD 1.1 F1/EM 90.2/83.2 (google-research/albert, v2).
Got        Not run.
"""

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import SentencePiece
from bertgpt.models.albert import ALBERT_BASE
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import Lamb


def experiment() -> Experiment:
    return Experiment(
        name="albert_base",
        model=ALBERT_BASE,
        objective=MaskedLM(mask_rate=0.15, unit="ngram", max_ngram=3, pair="sop"),
        data=Corpus(
            "data/wiki_books",
            SentencePiece(vocab_size=30_000, style="albert"),
            seq_len=512,
            layout="swapped_pairs",
            validation=0.001,
            test=0.001,
        ),
        optim=Lamb(lr=1.76e-3, warmup_steps=3_125),
        steps=125_000,
        batch_size=4096,
        compute_dtype="bfloat16",
        eval_every=5_000,
        save_every=5_000,
        keep_last=2,
        keep_best=1,
    )
