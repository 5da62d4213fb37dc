"""Next sentence, sentence order, or neither (Devlin et al. 2019; Liu et al. 2019; Lan et al. 2020).

Question   does either help the masked LM, and is either learnt?
Run        bertgpt train experiments/pretrain/mini_bert.py experiments/ablations/sentence_pairs.py
Hardware   2 CPU cores
Expect     RoBERTa: leaving next-sentence prediction out does not hurt; ALBERT: sentence order is harder, and better
Got        not run
"""

from bertgpt.config import arms, with_seeds
from experiments.ablations.small import PRETRAIN, SEEDS

DELTAS = {
    "nsp": {"objective.pair": "nsp", "data.rows": "pairs"},
    "sop": {"objective.pair": "sop", "data.rows": "swapped_pairs"},
    "none": {"data.rows": "pairs"},
}
ARMS = with_seeds(arms(PRETRAIN, DELTAS), SEEDS)
