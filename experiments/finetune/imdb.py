"""Sentiment of whole film reviews with BERT-base.

Question   Does an imported BERT-base reach its published accuracy on IMDB?
Run        pip install 'bertgpt[demo]' && bertgpt train finetune/imdb
           with bert-base-uncased in the Hugging Face format in models/bert-base-uncased, or --init_from another place
Hardware   one accelerator, about an hour
Expect     Test accuracy 94.4 from the beginning of each review, 94.6 from its beginning and end (Sun et al. 2019; 2e-5,
           4 epochs, batch 24). The package contains only the 25,000 training reviews; 10 % of them are held out.
Got        Not run.
"""

import dataclasses

from bertgpt.experiments.demo.sentiment import BASE

from bertgpt.config import TEST, VALIDATION, Experiment
from bertgpt.models.bert import BERT_BASE
from bertgpt.tasks.baselines import Majority, TfidfLogisticRegression


def experiment() -> Experiment:
    steps = 4 * 20_000 // 24
    data = dataclasses.replace(
        BASE.data, tokenizer=None, seq_len=512, packed=False, where="source=imdb", validation=0.1, test=0.1
    )
    return dataclasses.replace(
        BASE,
        name="imdb",
        model=dataclasses.replace(BERT_BASE, activation="gelu"),
        data=data,
        optim=dataclasses.replace(BASE.optim, lr=2e-5, warmup_steps=steps // 10),
        steps=steps,
        batch_size=24,
        compute_dtype="bfloat16",
        init_from="models/bert-base-uncased",
        evals=(VALIDATION, TEST),
        baselines=(Majority(), TfidfLogisticRegression()),
        eval_every=1000,
    )
