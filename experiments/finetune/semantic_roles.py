"""Semantic role labelling: the arguments of each predicate of a sentence, as spans (PropBank, English web texts).

Question   Can a tagger find the arguments of a predicate that is marked by its token type?
Run        bertgpt train finetune/semantic_roles
           with train.jsonl.gz, dev.jsonl.gz and test.jsonl.gz in data/propbank, whose records have `tokens` and
           `frames`, a list of {"pred": 3, "tags": ["B-ARG0", …]}
Hardware   1 CPU core
Expect     No published number on these spans. F1 86.5 on CoNLL-2012 for BERT-base, which reads the predicate again
           after the sentence (Shi & Lin 2019, table 5). Here 16,000 of 40,384 training examples are used.
Got        Test F1 0.514 after 6 minutes; most frequent tag of each word 0.009.
"""

import dataclasses

from bertgpt.experiments.finetune.ner import BASE

from bertgpt.config import TEST, Experiment
from bertgpt.tasks.tagging import TokenTagging

PROPBANK = TokenTagging(
    "data/propbank/train.jsonl.gz",
    validation_path="data/propbank/dev.jsonl.gz",
    test_path="data/propbank/test.jsonl.gz",
    frames_field="frames",
    predicate_field="pred",
    stride=32,
    packed=True,
    max_examples=16_000,
)


def experiment() -> Experiment:
    optim = dataclasses.replace(BASE.optim, warmup_steps=40)
    return dataclasses.replace(BASE, name="semantic_roles", data=PROPBANK, optim=optim, steps=400, evals=(TEST,))
