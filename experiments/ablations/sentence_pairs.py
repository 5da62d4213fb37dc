"""Next sentence, sentence order, or neither (Devlin et al. 2019; Liu et al. 2019; Lan et al. 2020).

Question   does either help the masked LM, or a sentence classifier?
Run        bertgpt train experiments/pretrain/mini_bert.py experiments/ablations/sentence_pairs.py
Hardware   2 CPU cores
Expect     RoBERTa: leaving next-sentence prediction out does not hurt; ALBERT: sentence order is harder, and better
Got        not run
"""

from bertgpt.config import arms, with_seeds
from experiments.ablations.small import ENCODER, PRETRAIN, SEEDS, sentiment

DELTAS = {
    "nsp": {"objective.pair": "nsp", "data.rows": "pairs"},
    "sop": {"objective.pair": "sop", "data.rows": "swapped_pairs"},
    "none": {"data.rows": "pairs"},
}
PRETRAINED = arms(PRETRAIN, DELTAS)
TUNED = {
    f"{arm}_sentiment": sentiment(f"{arm}_sentiment", ENCODER, "mini_bert", experiment.name)
    for arm, experiment in PRETRAINED.items()
}
ARMS = with_seeds(PRETRAINED | TUNED, SEEDS)
