"""GPT-3 pretraining at eight sizes (Brown et al. 2020, table 2.1 and appendix B).

Question   Does the loss fall with size as the paper's power law predicts?
Run        bertgpt train pretrain/gpt3:125m --data.path STORE --mesh.fsdp 8
Hardware   an accelerator pod; 175B took 3,640 petaflop/s-days (paper)
Expect     L = 2.57 · C^−0.048 nats for C petaflop/s-days (Brown et al. 2020, figure 3.1).
Got        Not run.
Deviations The paper increases the batch size from 32k tokens over the first 4 to 12 billion; here it is constant.
"""

from bertgpt.config import Experiment, arms
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.models import gpt
from bertgpt.objectives.lm import CausalLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW

CONTEXT, TOKENS, WARMUP, DECAY = 2048, 300e9, 375e6, 260e9

BASE = Experiment(
    name="gpt3",
    model=gpt.GPT3_125M,
    objective=CausalLM(),
    data=Corpus(
        "data/web",
        ByteBPE(vocab_size=50_257, style="gpt2"),
        seq_len=CONTEXT,
        layout="stream",
        validation=0.0001,
        test=0.0,
    ),
    optim=AdamW(
        decay="cosine", end_fraction=0.1, b2=0.95, eps=1e-8, bias_correction=True, weight_decay=0.1, clip_norm=1.0
    ),
    steps=1,
    batch_size=256,
    compute_dtype="bfloat16",
    eval_every=1_000,
    save_every=1_000,
    keep_last=2,
)


def size(model: gpt.GptConfig, batch_tokens: float, lr: float) -> dict:
    """One row of table 2.1. The cosine schedule ends at 260 billion tokens; the rate then stays at a tenth."""
    batch = round(batch_tokens / CONTEXT / 8) * 8
    per_step = batch * CONTEXT
    return {
        "model": model, "batch_size": batch, "steps": round(TOKENS / per_step), "optim.lr": lr,
        "optim.warmup_steps": round(WARMUP / per_step), "optim.decay_steps": round(DECAY / per_step),
    }  # fmt: skip


ARMS = arms(BASE, {
    "125m": size(gpt.GPT3_125M, 0.5e6, 6e-4), "350m": size(gpt.GPT3_350M, 0.5e6, 3e-4),
    "760m": size(gpt.GPT3_760M, 0.5e6, 2.5e-4), "1b3": size(gpt.GPT3_1B3, 1e6, 2e-4),
    "2b7": size(gpt.GPT3_2B7, 1e6, 1.6e-4), "6b7": size(gpt.GPT3_6B7, 2e6, 1.2e-4),
    "13b": size(gpt.GPT3_13B, 2e6, 1e-4), "175b": size(gpt.GPT3_175B, 3.2e6, 0.6e-4),
})  # fmt: skip
