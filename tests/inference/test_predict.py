"""Predictions: what is cut or cannot be told is reported."""

from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import TINY

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.encode import classify, tokenize
from bertgpt.inference.model import Model
from bertgpt.inference.predict import known
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
