"""RoBERTa-base pretraining: no NSP, full sentences, dynamic masking, large batches (Liu et al. 2019, table 9).

Question   Does the recipe without next-sentence prediction reproduce?
Run        bertgpt train pretrain/roberta_base --data.path STORE --mesh.fsdp 8
Hardware   1024 V100 GPUs, about one day (paper)
Expect     After fine-tuning, GLUE dev SST-2 94.8, MNLI 87.6, RTE 78.7 (fairseq).
Got        Not run.
"""

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.models.bert import ROBERTA_BASE
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="roberta_base",
        model=ROBERTA_BASE,
        objective=MaskedLM(mask_rate=0.15),
        data=Corpus(
            "data/corpus",
            ByteBPE(vocab_size=50_265),
            seq_len=512,
            layout="full_sentences",
            validation=0.001,
            test=0.001,
        ),
        optim=AdamW(lr=6e-4, warmup_steps=24_000, b2=0.98, bias_correction=True, clip_norm=None),
        steps=500_000,
        batch_size=8192,
        compute_dtype="bfloat16",
        eval_every=10_000,
        save_every=5_000,
        keep_last=2,
        keep_best=1,
    )
