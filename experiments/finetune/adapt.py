"""Domain adaptation, then classification: masked LM on your texts and the task from there, in one command.

Question   What does continued pretraining on your texts bring for the task (Gururangan et al. 2020)?
Run        bertgpt train finetune/adapt --adapt/data.path 'texts/*.jsonl'
           --adapted_classify/data.path labelled.csv --adapted_classify/data.label_field topic
Hardware   2 CPU cores, minutes
Expect     The masked LM loss on held-out texts falls; the task improves most where labels are few.
Got        Not run. experiments/pretrain/adaptation.py has the result for an encoder pretrained here.
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
    # The fractions of the task, so that its held-out texts are held out here too.
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
