"""T5 pretraining: span corruption at the sizes of the paper (Raffel et al. 2020 §3.7).

Question   Does the text-to-text denoiser reproduce at 11 billion parameters?
Run        bertgpt train pretrain/t5:base --data.path STORE --mesh.fsdp 8
Hardware   TPU v3 pods of up to 1,024 chips (paper)
Expect     GLUE average 82.7 (base), 88.5 (3B), 90.3 (11B) (Raffel et al. 2020, table 14).
Got        Not run. docs/scaling.md plans the largest one.
Deviations The paper mixes supervised tasks into pretraining; here it is span corruption alone.
"""

import dataclasses

from bertgpt.experiments.pretrain import t5_v1_1

from bertgpt.config import arms
from bertgpt.models.t5 import T5_3B, T5_11B, T5_BASE

BASE = dataclasses.replace(
    t5_v1_1.BASE,
    name="t5",
    model=dataclasses.replace(T5_BASE, max_len=t5_v1_1.RAW),
    objective=dataclasses.replace(t5_v1_1.SPANS, z_loss=0.0),
)
ARMS = arms(BASE, {
    "base": {},
    "3b": {"model": dataclasses.replace(T5_3B, max_len=t5_v1_1.RAW, scan=True)},
    "11b": {"model": dataclasses.replace(T5_11B, max_len=t5_v1_1.RAW, scan=True)},
})  # fmt: skip
