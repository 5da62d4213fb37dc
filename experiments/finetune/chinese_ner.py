"""Named entities in Chinese résumés, one tag per character: a small network from scratch, with and without a CRF.

Question   How good is a mini encoder without pretraining, and what does a CRF add?
Run        bertgpt train finetune/chinese_ner
           with train.char.bmes, dev.char.bmes and test.char.bmes of ResumeNER (Zhang & Yang 2018), plain or .gz, in
           data/resume
Hardware   1 CPU core
Expect     Test F1 94.5 for a lattice LSTM with pretrained characters and words (Zhang & Yang 2018, table 9). Here all
           weights are random, because no Chinese checkpoint was available, and the vocabulary is trained on the 3,821
           sentences.
Got        Test F1 and validation F1 after 12 epochs, 2 minutes: linear 0.882, 0.853; CRF 0.860, 0.844; most frequent
           tag of each character 0.232, 0.219.
"""

import dataclasses

from bertgpt.experiments.pretrain.mini import ENCODER

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.data.tokenizer import WordPiece
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tagging import MostFrequentTag, TokenTagging
from bertgpt.training.optim import AdamW

RESUME = TokenTagging(
    "data/resume/train.char.bmes",
    validation_path="data/resume/dev.char.bmes",
    test_path="data/resume/test.char.bmes",
    tokenizer=WordPiece(4096, limit_alphabet=4000),
    scheme="bioes",
    characters=True,
    stride=32,
    packed=True,
)
BASE = Experiment(
    name="chinese_ner",
    model=dataclasses.replace(ENCODER, max_len=128, dropout=0.1),
    objective=Tag(),
    data=RESUME,
    optim=AdamW(lr=2e-3, warmup_steps=60, bias_correction=True),
    steps=1600,
    batch_size=8,
    evals=(VALIDATION, TEST),
    baselines=(MostFrequentTag(),),
)
ARMS = arms(BASE, {"linear": {}, "crf": {"objective.crf": True}})
