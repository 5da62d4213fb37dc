"""Predictions: what is cut or cannot be told is reported."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from bertgpt.config import TEST, Experiment
from bertgpt.data.tokenizer import ByteBPE, Tokenizer
from bertgpt.inference.encode import classify, tokenize
from bertgpt.inference.model import Model, load
from bertgpt.inference.predict import known, predict
from bertgpt.objectives.classify import Classify
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.types import Labels


def test_answers_with_numbers_that_are_not_finite_are_null_and_counted(caplog: pytest.LogCaptureFixture):
    nan, infinity = float("nan"), float("inf")
    answers = [{"label": "a", "p": 0.5}, {"label": "a", "p": nan}, {"n_best": [{"score": -infinity}], "answer": "x"}]
    assert list(known(answers)) == [answers[0], {"label": None, "p": None}, {"n_best": None, "answer": None}]
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 3 predictions are null, because the model's numbers are not finite"
    ]
    caplog.clear()
    assert list(known(answers[:1])) == answers[:1] and not caplog.records


def test_texts_beyond_the_longest_sequence_are_counted_and_classes_of_nan_are_null(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
):
    def apply(params: object, inputs: object = None, *, method: str = "", **named: object) -> jnp.ndarray:
        del params
        if method == "class_logits":  # of the second text NaN
            return jnp.where(jnp.arange(2)[:, None] == 1, jnp.nan, jnp.zeros((2, 2)))
        return jnp.zeros((*inputs.input_ids.shape, 16))

    params = {"classifier": {"dense": {"bias": jnp.zeros(2)}}}
    model = Model(TINY, tokenizer, apply, params, Path("x"), labels=Labels(("neg", "pos"), kind="label"))
    assert [len(ids) for ids in tokenize(model, ["the cat", "the cat " * 30, "the " * 30])] == [4, 32, 32]
    assert [r.getMessage() for r in caplog.records] == ["1 of 3 texts are truncated to 32 tokens"]
    caplog.clear()
    found = list(classify(model, ["the cat", "the cat sleeps"], batch_size=2))
    assert found[0] == {"label": "neg", "probability": 0.5, "probabilities": {"neg": 0.5, "pos": 0.5}}
    assert found[1] == dict.fromkeys(found[0])
    assert "1 of 2 predictions are null" in caplog.records[0].getMessage()


@pytest.mark.slow
def test_a_run_is_scored_on_every_record_of_its_test_file_as_predict_answers_them(tmp_path: Path):
    rows = [{"text": f"line {i}\n\n  second\t{i % 3}", "label": "ab"[i % 2]} for i in range(40)]
    # Repeated, contradictory and empty texts; none is dropped.
    test = [*rows[:5] * 3, {"text": "", "label": "a"}, rows[0] | {"label": "b"}]
    for name, records in (("train", rows), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = TextClassification(
        str(tmp_path / "train.jsonl"), test_path=str(tmp_path / "test.jsonl"), validation=0.0, seq_len=32,
        tokenizer=ByteBPE(vocab_size=300, min_frequency=1),
    )  # fmt: skip
    model = dataclasses.replace(TINY, vocab_size=300)
    results = train(
        Experiment("r", model, Classify(), data, AdamW(lr=1e-2), steps=6, batch_size=8, evals=(TEST,)),
        tmp_path / "runs",
    )
    run = load(tmp_path / "runs" / "r")
    texts = [record["text"] for record in test]
    answers = list(predict(run, texts))
    right = [answer["label"] == record["label"] for answer, record in zip(answers, test, strict=True)]
    assert len(right) == 17 and results["evals"]["test"]["accuracy"] == pytest.approx(np.mean(right))
    assert list(classify(run, texts)) == answers  # without the run's task, the same texts get the same answers
