"""Domain adaptation, then any classification: masked LM on your texts, and the task from there, in one command line.

Question   what does a second stage of pretraining on texts like yours do for the task (Gururangan et al. 2020)?
Run        bertgpt train experiments/finetune/adapt.py --adapt/data.path 'texts/*.jsonl'
             --adapted_classify/data.path labelled.csv --adapted_classify/data.label_field topic
Hardware   2 CPU cores, minutes
Expect     the masked LM loss on held-out texts falls; the task gains most where labels are few
Got        not run; with an encoder pretrained here see experiments/pretrain/adaptation.py
"""

import dataclasses

from bertgpt.experiments.finetune.classify import ARMS as CLASSIFY
from bertgpt.experiments.finetune.classify import MINILM

from bertgpt.config import VALIDATION, Experiment
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW

ADAPTED = Experiment(
    name="adapt",
    model=MINILM_L6_H384,
    objective=MaskedLM(),
    # The task's fractions: what it holds out is held out here too.
    data=Corpus("texts.jsonl", tokenizer=None, seq_len=128, layout="full_sentences", validation=0.1, test=0.1),
    optim=AdamW(lr=1e-4, warmup_steps=20, bias_correction=True),
    steps=200,
    batch_size=16,
    evals=(VALIDATION,),
    init_from=MINILM,
)
ARMS = {
    "adapt": ADAPTED,
    "classify": dataclasses.replace(CLASSIFY["minilm"], name="adapted_classify", init_from="adapt"),
}
