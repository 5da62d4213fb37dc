"""Sentiment of SST-2 sentences with every pretrained encoder family, each with its published recipe.

Question   Do imported checkpoints reach their published scores after fine-tuning?
Run        bertgpt train finetune/sst2:bert_base --data.path data/SST-2/train.tsv
           with checkpoints in the Hugging Face format in models/, e.g. models/bert-base-uncased
Hardware   one accelerator, minutes to an hour (67,000 sentences, 3 epochs; RoBERTa 10)
Expect     Accuracy on GLUE dev: BERT-base 92.7 (Devlin et al. 2019, table 5), RoBERTa-base 94.8 (fairseq), ALBERT-base
           v2 92.9, ELECTRA-small 91.2, ELECTRA-base 95.1 (their repositories). Here 2 % of the training sentences are
           held out instead, which are partly phrases and therefore somewhat easier.
Got        Not run.
"""

import dataclasses

from bertgpt.config import VALIDATION, Experiment, arms
from bertgpt.models.albert import ALBERT_BASE
from bertgpt.models.bert import BERT_BASE, ROBERTA_BASE
from bertgpt.models.electra import ELECTRA_BASE, ELECTRA_SMALL
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.optim import AdamW

EPOCH = 66_000 // 32
BASE = Experiment(
    name="sst2",
    model=dataclasses.replace(BERT_BASE, activation="gelu"),
    objective=Classify(num_labels=2),
    data=TextClassification(
        "data/SST-2/train.tsv",
        labels=("0", "1"),
        names=("negative", "positive"),
        seq_len=128,
        text_field="sentence",
        validation=0.02,
        test=0.0,
    ),
    optim=AdamW(lr=2e-5, warmup_steps=3 * EPOCH // 10, bias_correction=True),
    steps=3 * EPOCH,
    batch_size=32,
    compute_dtype="bfloat16",
    evals=(VALIDATION,),
    eval_every=1000,
)
ROBERTA = {
    "optim.lr": 1e-5,
    "optim.warmup_steps": 10 * EPOCH * 6 // 100,
    "optim.weight_decay": 0.1,
    "steps": 10 * EPOCH,
}
ELECTRA = dataclasses.replace(ELECTRA_BASE.discriminator, activation="gelu", pooler="dropout_gelu")
SMALL = dataclasses.replace(ELECTRA_SMALL.discriminator, activation="gelu", pooler="dropout_gelu")
ARMS = arms(BASE, {
    "bert_base": {"init_from": "models/bert-base-uncased"},
    "roberta_base": {"init_from": "models/roberta-base", "model": ROBERTA_BASE, **ROBERTA},
    "albert_base": {"init_from": "models/albert-base-v2", "model": ALBERT_BASE, "optim.lr": 1e-5},
    "electra_small": {"init_from": "models/electra-small-discriminator", "model": SMALL, "optim.lr": 3e-4},
    "electra_base": {"init_from": "models/electra-base-discriminator", "model": ELECTRA, "optim.lr": 1e-4},
})  # fmt: skip
