"""The mask rate: 15, 25 or 40 % (Wettig et al. 2023).

Question   Is 15 % the best mask rate for a fixed number of steps?
Run        bertgpt train pretrain/mini_bert ablations/mask_rate
Hardware   2 CPU cores
Expect     For large models 40 % is as good as 15 % or better; small models prefer less (Wettig et al. 2023).
Got        Loss at 15 % masking after 400 steps (three seeds): trained at 15 % 5.950 ± 0.023, 25 % 5.820 ± 0.064, 40 %
           5.684 ± 0.073. For so few steps a higher rate is better; longer runs were not measured.
"""

from bertgpt.experiments.ablations.small import PRETRAIN, SEEDS

from bertgpt.config import arms, with_seeds

DELTAS = {f"mask{rate}": {"objective.mask_rate": rate / 100} for rate in (15, 25, 40)}
ARMS = with_seeds(arms(PRETRAIN, DELTAS), SEEDS)
