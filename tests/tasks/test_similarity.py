"""Bi-encoders: pairs in rows of their own, losses against their formulas, retrieval against sorting."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.data.examples import Example
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.objectives.similarity import BiEncode
from bertgpt.tasks.similarity import TextPairs, evaluate_retrieval
from bertgpt.types import DataRequest, UserError, Vocab

PAIRS = [("cat", "dog", 4.0), ("cat dog", "house", 0.5), ("bird", "cat " * 40, 2.0), ("", "dog", 1.0)]


@pytest.fixture
def data(tmp_path: Path) -> TextPairs:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"text1": a, "text2": b, "label": s}) + "\n" for a, b, s in PAIRS))
    return TextPairs(str(path), seq_len=16, validation=0.0, test=0.0)


def test_both_texts_of_a_pair_stand_in_rows_of_their_own(data: TextPairs, tokenizer: Tokenizer):
    made = data.make(
        DataRequest(split="train", seed=0, batch_size=4, tokenizer=tokenizer, cache=Path("."), shuffle=False)
    )
    batch = made[0]  # the pair with an empty text is left out, and filler takes its place
    cls, sep, (cat,), (dog,) = tokenizer.vocab.cls, tokenizer.vocab.sep, *tokenizer.encode(["cat", "dog"])
    assert batch["input_ids"][0, :, :3].tolist() == [[cls, cat, sep], [cls, dog, sep]]
    assert batch["segment_ids"].shape == (4, 2, 16) and not batch["segment_ids"][3].any()
    assert batch["label"].tolist() == [4.0, 0.5, 2.0, -1.0]
    assert tuple(w.text for w in made.dataset.warnings) == (
        "1 empty texts are skipped",
        "1 of 6 texts are truncated to 16 tokens",
    )
    records = [{"text1": "cat", "text2": "dog"}]
    new = data.predict_batches(records, 2, tokenizer)[0]
    assert (new["input_ids"][0] == batch["input_ids"][0]).all()


def test_only_keeps_pairs_that_belong_together(data: TextPairs):
    assert dataclasses.replace(data, only="2.0").examples("train") == [Example(("bird", "cat " * 40), 1.0)]
    with pytest.raises(UserError, match=r"pairs.jsonl:1: 'text1' is 'cat', not a number"):
        dataclasses.replace(data, label_field="text1").examples("train")


@pytest.mark.parametrize("loss", ["cosine", "negatives"])
def test_losses_are_their_formulas(loss: str, rng: np.random.Generator):
    states = rng.normal(size=(4, 2, 5)).astype(np.float32)

    def apply(params: Any, inputs: Any = None, *, method: str = "__call__", rng: Any = None, **named: Any) -> Any:
        return jnp.asarray(states.reshape(8, 5)) if method == "pool" else jnp.zeros((8, 3, 5))

    segments = np.ones((4, 2, 3), np.int32)
    segments[3] = 0  # the last pair only fills up the batch
    label = np.array([5.0, 0.0, 2.5, -1.0], np.float32)
    batch = {name: np.zeros((4, 2, 3), np.int32) for name in ("input_ids", "positions", "type_ids")}
    batch |= {"segment_ids": segments, "label": label}
    found = BiEncode(loss, scale=5.0).make(Vocab(size=9)).loss(apply, {}, jax.tree.map(jnp.asarray, batch), None)
    unit = states.astype(np.float64) / np.linalg.norm(states, axis=-1, keepdims=True)
    cosines = unit[:3, 0] @ unit[:3, 1].T
    if loss == "cosine":
        expected = np.mean((np.diagonal(cosines) - label[:3] / 5.0) ** 2)
    else:
        scores = 5.0 * cosines
        expected = np.mean(np.log(np.exp(scores).sum(-1)) - np.diagonal(scores))
    term = found.terms[loss]
    assert float(term.sum / term.weight) == pytest.approx(expected, rel=1e-5) and float(term.weight) == 3


def test_retrieval_ranks_as_sorting_does(rng: np.random.Generator):
    a, b = rng.normal(size=(2, 40, 8))
    order = np.argsort(-(a @ b.T), axis=1)
    rank = np.array([list(row).index(i) for i, row in enumerate(order)])
    metrics = evaluate_retrieval(a, b).values
    assert metrics["recall_at_5"] == pytest.approx(np.mean(rank < 5))
    assert metrics["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / (rank + 1)))


def test_texts_that_are_all_alike_find_nothing():
    same = np.ones((50, 4))
    assert evaluate_retrieval(same, same).values["recall_at_1"] == 0.0
    assert evaluate_retrieval(same, same).values["mean_reciprocal_rank"] == pytest.approx(1 / 25.5)


def test_a_batch_of_filler_has_no_loss_of_negatives():
    batch = {name: jnp.zeros((2, 2, 3), int) for name in ("input_ids", "positions", "type_ids", "segment_ids")}

    def apply(params: Any, inputs: Any = None, *, method: str = "__call__", rng: Any = None, **named: Any) -> Any:
        return jnp.ones((4, 5)) if method == "pool" else jnp.zeros((4, 3, 5))

    term = BiEncode("negatives").make(Vocab(size=9)).loss(apply, {}, batch | {"label": jnp.ones(2)}, None).terms
    assert term["negatives"] == (0.0, 0.0)


def test_repeated_pairs_are_counted_and_numbers_must_be_finite(data: TextPairs, tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "more.jsonl"
    lines = [("a", "b", 1), ("a", "b", 5), ("a", "c", 1)]
    path.write_text("".join(json.dumps({"text1": a, "text2": b, "label": c}) + "\n" for a, b, c in lines))
    more = dataclasses.replace(data, path=str(path))
    made = more.make(
        DataRequest(split="train", seed=0, batch_size=2, tokenizer=tokenizer, cache=Path("."), shuffle=False)
    )
    assert tuple(w.text for w in made.dataset.warnings) == (
        "1 texts repeat earlier ones with another label and are skipped",
    )
    path.write_text(json.dumps({"text1": "a", "text2": "b", "label": "nan"}) + "\n")
    with pytest.raises(UserError, match="more.jsonl:1: 'label' is 'nan', not a number"):
        more.examples("train")
