"""ELECTRA-small and -base pretraining: replaced-token detection (Clark et al. 2020, table 6; released code).

Question   Does replaced-token detection learn more from the same compute than masked LM?
Run        bertgpt train pretrain/electra_small:small --data.path STORE    # or :base
Hardware   small: one V100, 4 days; base: 16 TPU v3 chips, 4 days (paper)
Expect     After fine-tuning, GLUE dev SST-2 91.2, MNLI 81.3 (small); 95.1, 88.8 (base) (google-research/electra).
Got        Not run.
"""

from bertgpt.config import Experiment, arms
from bertgpt.models.electra import ELECTRA_BASE, ELECTRA_SMALL
from bertgpt.objectives.rtd import ReplacedTokenDetection
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW

SMALL = Experiment(
    name="electra",
    model=ELECTRA_SMALL,
    objective=ReplacedTokenDetection(),
    data=Corpus("data/wiki_books", seq_len=128, layout="concat", validation=0.001, test=0.001),
    optim=AdamW(lr=5e-4, warmup_steps=10_000, weight_decay=0.01),
    steps=1_000_000,
    batch_size=128,
    compute_dtype="bfloat16",
    eval_every=10_000,
    save_every=10_000,
    keep_last=2,
    keep_best=1,
)
BASE = {"model": ELECTRA_BASE, "data.seq_len": 512, "optim.lr": 2e-4, "steps": 766_000, "batch_size": 256}
ARMS = arms(SMALL, {"small": {}, "base": BASE})
