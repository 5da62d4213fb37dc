"""What the small ablations share: a third of a mini's data, sequences of 32 tokens, three seeds, and a downstream task.

They use the tokenizer of `mini_bert`, so train pretrain/mini_bert in the same --workdir first.
"""

import dataclasses
from typing import Any

from bertgpt.experiments.pretrain.mini import ADAM, ENCODER, REVIEWS, TEXT

from bertgpt.config import TEST, VALIDATION, Eval, Experiment
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.optim import AdamW

SEEDS = (0, 1, 2)
ROWS = dataclasses.replace(TEXT, seq_len=32, tokenizer="mini_bert", layout="full_sentences")
# Whatever the training objective, evaluate on the same tokens of the same sequences, at BERT's mask rate.
MASKED = Eval("masked", "validation", max_batches=100, objective=MaskedLM(mask_rate=0.15), data=ROWS)

PRETRAIN = Experiment(
    name="small",
    model=ENCODER,
    objective=MaskedLM(mask_rate=0.15),
    data=ROWS,
    optim=ADAM,
    steps=400,
    batch_size=32,
    evals=(Eval("validation", "validation", max_batches=100), MASKED),
    log_every=200,
)


def sentiment(name: str, model: Any, tokenizer: str, init_from: str | None) -> Experiment:
    """Sentiment classification of 6,800 sentences of film reviews."""
    data = TextClassification(
        REVIEWS, labels=("0", "1"), names=("negative", "positive"), tokenizer=tokenizer, seq_len=48,
        where="source=rotten_tomatoes", strip_html=True, validation=0.05, test=0.15,
    )  # fmt: skip
    return Experiment(
        name=name,
        model=dataclasses.replace(model, dropout=0.1, pooler="mean"),
        objective=Classify(num_labels=2),
        data=data,
        optim=AdamW(lr=1e-3, warmup_steps=40, bias_correction=True),
        steps=200,
        batch_size=32,
        evals=(VALIDATION, TEST),
        init_from=init_from,
        log_every=100,
    )
