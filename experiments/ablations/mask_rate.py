"""How many tokens to mask (Wettig et al. 2023): 15, 25 or 40 %.

Question   is 15 % the best mask rate for a fixed number of updates?
Run        bertgpt train experiments/pretrain/mini_bert.py experiments/ablations/mask_rate.py
Hardware   2 CPU cores
Expect     for large models 40 % does as well as 15 % or better (Wettig et al. 2023); small ones want less
Got        not run
"""

from bertgpt.config import arms, with_seeds
from experiments.ablations.small import PRETRAIN, SEEDS

DELTAS = {f"mask{rate}": {"objective.mask_rate": rate / 100} for rate in (15, 25, 40)}
ARMS = with_seeds(arms(PRETRAIN, DELTAS), SEEDS)
