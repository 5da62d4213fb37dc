"""GPT-2 pretraining: a causal language model on web text (Radford et al. 2019; details from nanoGPT).

Question   Does GPT-2 124M reach the published loss on OpenWebText?
Run        bertgpt train pretrain/gpt2 --data.path STORE
Hardware   8 A100 GPUs, about 4 days (nanoGPT)
Expect     Validation loss of about 2.85 nats on OpenWebText after 600,000 steps of half a million tokens (nanoGPT).
Got        Not run.
"""

import dataclasses

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.models.gpt import GPT2_SMALL
from bertgpt.objectives.lm import CausalLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW


def experiment() -> Experiment:
    return Experiment(
        name="gpt2",
        model=dataclasses.replace(GPT2_SMALL, dropout=0.0, attention_dropout=0.0),
        objective=CausalLM(),
        data=Corpus(
            "data/openwebtext",
            ByteBPE(vocab_size=50_257, style="gpt2"),
            seq_len=1024,
            layout="stream",
            validation=0.001,
            test=0.001,
        ),
        optim=AdamW(
            lr=6e-4,
            warmup_steps=2_000,
            decay="cosine",
            end_fraction=0.1,
            b2=0.95,
            eps=1e-8,
            bias_correction=True,
            weight_decay=0.1,
        ),  # fmt: skip
        steps=600_000,
        batch_size=480,  # × 1024 tokens
        compute_dtype="bfloat16",
        eval_every=1_000,
        save_every=1_000,
        keep_last=2,
        keep_best=1,
    )
