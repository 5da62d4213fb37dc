"""Distillation of a tagger: slots of ATIS with a quarter of a fine-tuned encoder, with and without its teacher.

Question   What F1 does a student of a quarter of the teacher's arithmetic keep, and what does the teacher add?
Run        bertgpt train finetune/distill_slots:teacher
           bertgpt prune runs/teacher.slots runs/pruned.slots --num_layers 3 --num_heads 6 --d_ff 768
           bertgpt train finetune/distill_slots
           with the files of experiments/finetune/slots.py
Hardware   1 CPU core, about 6 minutes for the teacher and 1 to 3 for a student
Expect     No published number for this split; DistilBERT keeps 97 % of BERT's score on GLUE with half of the layers.
Got        Test F1, mean and deviation of three seeds: teacher 0.938, student with the teacher 0.922 ± 0.001 (98.4 % of
           it), without 0.949 ± 0.002 (101.2 %), with 25 % of its FLOPs per token. This teacher was trained for 300
           steps only; its students go on for 300 more, and those that learn from the labels alone pass it.
"""

import dataclasses

from bertgpt.experiments.finetune import slots

from bertgpt.config import arms, with_overrides, with_seeds
from bertgpt.objectives.distill import Distill
from bertgpt.objectives.tag import Tag

TEACHER = with_overrides(slots.experiment(), {"name": "teacher.slots", "data.seq_len": 64, "batch_size": 16})
STUDENT = dataclasses.replace(
    TEACHER,
    name="student.slots",
    model=None,  # that of init_from
    init_from="pruned.slots",
    baselines=(),
)
TAUGHT = Distill(Tag(), teacher="teacher.slots", temperature=2.0, logits_weight=0.9, hidden_weight=1.0)
ARMS = {"teacher": TEACHER} | with_seeds(arms(STUDENT, {"taught": {"objective": TAUGHT}, "alone": {}}), seeds=(0, 1, 2))
