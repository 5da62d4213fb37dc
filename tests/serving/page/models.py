"""Tiny models for the page: one for each kind of task, with random parameters."""

from pathlib import Path
from typing import Any

from serving_models import ENCODER, make_model

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import Model
from bertgpt.objectives.qa import ExtractSpan
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.question_answering import QuestionAnswering
from bertgpt.tasks.tagging import TokenTagging
from bertgpt.training.optim import AdamW

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def make_run(name: str, tokenizer: Tokenizer, objective: Any, data: Any, **heads: Any) -> Model:
    """A model of a run that was not trained."""
    experiment = Experiment(name=name, model=ENCODER, objective=objective, data=data, optim=AdamW(), steps=1)
    model = make_model(ENCODER, tokenizer, **heads)
    return model._replace(
        experiment=experiment, objective=objective.make(tokenizer.vocab), labels=data.label_set, path=Path(name)
    )


def make_tagger(tokenizer: Tokenizer, tokenizer_dir: Path) -> Model:
    """Persons and places."""
    data = TokenTagging("none.txt", labels=TAGS, tokenizer=str(tokenizer_dir), seq_len=32)
    return make_run("tagger", tokenizer, Tag(labels=TAGS), data, tag_logits={"num_labels": len(TAGS)})


def make_reader(tokenizer: Tokenizer, tokenizer_dir: Path) -> Model:
    """Answers in passages; there always is one."""
    path = str(tokenizer_dir)
    data = QuestionAnswering("none.jsonl", tokenizer=path, seq_len=48, stride=16, max_question=16, null_threshold=None)
    return make_run("reader", tokenizer, ExtractSpan(), data, span_logits={})
