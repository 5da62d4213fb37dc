"""Next sentence, sentence order, or neither (Devlin et al. 2019; Liu et al. 2019; Lan et al. 2020).

Question   does either help the masked LM, and is either learnt?
Run        bertgpt train experiments/pretrain/mini_bert.py experiments/ablations/sentence_pairs.py
Hardware   2 CPU cores
Expect     RoBERTa: leaving next-sentence prediction out does not hurt; ALBERT: sentence order is harder, and better
Got        masked LM loss on the same rows after 400 updates (three seeds): nsp 6.047 ± 0.013, sop 6.036 ± 0.024, none
           6.041 ± 0.018: no difference. Next sentence 0.748, the likelier label's share, with loss 0.546 ± 0.004
           against 0.564 for the shares; sentence order 0.499 ± 0.009, not learnt in this time
"""

from bertgpt.experiments.ablations.small import PRETRAIN, SEEDS

from bertgpt.config import arms, with_seeds

DELTAS = {
    "nsp": {"objective.pair": "nsp", "data.layout": "pairs"},
    "sop": {"objective.pair": "sop", "data.layout": "swapped_pairs"},
    "none": {"data.layout": "pairs"},
}
ARMS = with_seeds(arms(PRETRAIN, DELTAS), SEEDS)
