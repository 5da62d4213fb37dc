"""Switch-Base pretraining: T5-base with experts in every second feed-forward layer (Fedus et al. 2022).

Question   How much faster does a sparse model of the same FLOPs learn?
Run        bertgpt train pretrain/switch_base:e128 --data.path STORE --mesh.expert 8
Hardware   32 TPU v3 cores (paper)
Expect     Negative log perplexity on C4 after 100,000 steps: T5-base −1.731, Switch-Base −1.553 (table 1, capacity
           factor 1.25). Balanced experts: `router_load` entropy near 1, `router_dropped` near 0.
Got        Not run.
"""

import dataclasses

from bertgpt.experiments.pretrain.t5_v1_1 import BASE, RAW

from bertgpt.config import arms
from bertgpt.models import switch

SWITCH = dataclasses.replace(
    BASE,
    name="switch_base",
    model=dataclasses.replace(switch.SWITCH_BASE_8, dropout=0.1, max_len=RAW),
    objective=dataclasses.replace(BASE.objective, z_loss=0.0, load_balance=1e-2),
    steps=550_000,
    batch_size=2048,
)
ARMS = arms(SWITCH, {
    "e8": {},
    "e128": {"model": dataclasses.replace(switch.SWITCH_BASE_128, dropout=0.1, max_len=RAW)},
})  # fmt: skip
