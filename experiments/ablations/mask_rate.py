"""How many tokens to mask (Wettig et al. 2023): 15, 25 or 40 %.

Question   is 15 % the best mask rate for a fixed number of updates?
Run        bertgpt train experiments/pretrain/mini_bert.py experiments/ablations/mask_rate.py
Hardware   2 CPU cores
Expect     for large models 40 % does as well as 15 % or better (Wettig et al. 2023); small ones want less
Got        loss at 15 % masking after 400 updates (three seeds): trained at 15 % 5.950 ± 0.023, 25 % 5.820 ± 0.064, 40
           % 5.684 ± 0.073. In so few updates more asked words win; what holds after many is not measured
"""

from bertgpt.experiments.ablations.small import PRETRAIN, SEEDS

from bertgpt.config import arms, with_seeds

DELTAS = {f"mask{rate}": {"objective.mask_rate": rate / 100} for rate in (15, 25, 40)}
ARMS = with_seeds(arms(PRETRAIN, DELTAS), SEEDS)
