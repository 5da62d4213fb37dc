"""Next sentence, sentence order, or neither (Devlin et al. 2019; Liu et al. 2019; Lan et al. 2020).

Question   Does either help the masked LM, and is either learnt?
Run        bertgpt train pretrain/mini_bert ablations/sentence_pairs
Hardware   2 CPU cores
Expect     Leaving out next-sentence prediction does not hurt (RoBERTa); sentence order is harder and better (ALBERT).
Got        Masked LM loss on the same sequences after 400 steps (three seeds): nsp 6.047 ± 0.013, sop 6.036 ± 0.024,
           none 6.041 ± 0.018: no difference. Next sentence 0.748, the majority class, with loss 0.546 ± 0.004 (class
           frequencies 0.564); sentence order 0.499 ± 0.009, not learnt in this time.
"""

from bertgpt.experiments.ablations.small import PRETRAIN, SEEDS

from bertgpt.config import arms, with_seeds

DELTAS = {
    "nsp": {"objective.pair": "nsp", "data.layout": "pairs"},
    "sop": {"objective.pair": "sop", "data.layout": "swapped_pairs"},
    "none": {"data.layout": "pairs"},
}
ARMS = with_seeds(arms(PRETRAIN, DELTAS), SEEDS)
