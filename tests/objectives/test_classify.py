"""Losses of whole texts against their formulas in float64, through a fake model; packed rows against rows apart."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.data.examples import Example
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.classify import Classify, ClassifyMany, ClassifyOrdinal, Regress
from bertgpt.training.step import loss_and_grads
from bertgpt.types import DataConfig, Labels, Loss, UserError, Vocab

pytestmark = pytest.mark.usefixtures("float64")
VOCAB = Vocab(size=64, pad=0, cls=2, sep=3)
SCORES = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [-1.0, 0.2, 0.1], [9.0, 9.0, 9.0]])  # the last row is filler


def score(objective: Any, labels: Any, columns: int = 3) -> Loss:
    """The loss of SCORES, the last row of which only fills up the batch."""

    def apply(params: Any, inputs: Any = None, *, method: str = "__call__", rng: Any = None, **named: Any) -> Any:
        return jnp.asarray(SCORES[:, :columns]) if method == "class_logits" else jnp.zeros((4, 5, 2))

    segments = np.array([[1, 1, 0, 0, 0]] * 3 + [[0] * 5], np.int32)
    batch = {"label": jnp.asarray(labels), "segment_ids": jnp.asarray(segments)}
    batch |= {name: jnp.zeros((4, 5), jnp.int32) for name in ("input_ids", "positions", "type_ids")}
    return objective.make(VOCAB).loss(apply, {}, batch, None)


def mean(term: Any) -> float:
    return float(term.sum / term.weight)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_cross_entropy_with_smoothing_and_weights_is_the_formula():
    labels = np.array([0, 1, 2, -1])
    smooth, weights = 0.1, np.array([1.0, 2.0, 0.5])
    loss = score(Classify(3, label_smoothing=smooth, class_weights=tuple(weights)), labels)
    target = np.eye(3)[labels[:3]] * (1 - smooth) + smooth / 3
    each = -(target * log_softmax(SCORES[:3])).sum(-1)
    assert mean(loss.terms["cross_entropy"]) == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-6)
    assert mean(loss.metrics["accuracy"]) == pytest.approx(1 / 3)  # of 0, 2, 1 only the first


def test_several_labels_are_binary_questions():
    labels = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    loss = score(ClassifyMany(3), labels)
    p = 1 / (1 + np.exp(-SCORES[:3]))
    expected = -np.mean(np.where(labels[:3] > 0, np.log(p), np.log(1 - p)))
    assert mean(loss.terms["binary_cross_entropy"]) == pytest.approx(expected, rel=1e-6)
    assert mean(loss.metrics["label_accuracy"]) == pytest.approx(np.mean((p > 0.5) == (labels[:3] > 0)))


def test_ordered_labels_are_asked_for_step_by_step():
    labels = np.array([0, 2, 1, -1])
    loss = score(ClassifyOrdinal(3), labels, columns=2)  # two steps between three labels
    p, truth = 1 / (1 + np.exp(-SCORES[:3, :2])), labels[:3, None] > np.arange(2)
    assert mean(loss.terms["ordinal"]) == pytest.approx(-np.mean(np.where(truth, np.log(p), np.log(1 - p))), rel=1e-6)
    answers = (SCORES[:3, :2] > 0).sum(-1)
    assert mean(loss.metrics["mean_absolute_error"]) == pytest.approx(np.mean(np.abs(answers - labels[:3])))


def test_numbers_are_predicted_in_units_of_the_scale():
    labels = np.array([4.0, 1.0, np.nan, -1.0])
    loss = score(Regress(scale=5.0), labels, columns=1)
    error = SCORES[:2, 0] - labels[:2] / 5.0
    assert mean(loss.terms["squared_error"]) == pytest.approx(np.mean(error**2), rel=1e-6)
    assert mean(loss.metrics["mean_absolute_error"]) == pytest.approx(5.0 * np.mean(np.abs(error)), rel=1e-6)


def data_with(labels: Labels) -> DataConfig:
    """A data config with these labels."""

    class Data(DataConfig):
        label_set = labels

    return Data()


class Labelled(DataConfig):
    """Data with three labels, of which the first is as frequent as the others together."""

    label_set = Labels(("a", "b", "c"), kind="label")

    def examples(self, split: str) -> list[Example]:
        return [Example(("",), label) for label in (0, 0, 0, 0, 1, 1, 1, 2)]


def test_settling_takes_number_and_weights_of_labels_from_the_data():
    inferred = Classify(balance=True).infer(Labelled())
    assert inferred.num_labels == 3 and inferred.class_weights == pytest.approx((8 / 12, 8 / 9, 8 / 3))
    with pytest.raises(UserError, match="num_labels=2, but the data has 3 labels: a, b, c"):
        Classify(2).infer(Labelled())
    with pytest.raises(UserError, match="data of Data has no labels"):
        ClassifyMany().infer(data_with(Labels()))


@pytest.mark.slow
@pytest.mark.parametrize("pooler", ["tanh", "mean"])
def test_packed_texts_have_the_loss_and_gradients_of_texts_apart(pooler: str):
    config = BertConfig(
        vocab_size=64, d_model=8, num_layers=2, num_heads=2, d_ff=16, max_len=24, dropout=0.0, attention_dropout=0.0,
        stddev=0.3, pooler=pooler,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    lengths, labels = [5, 9, 4, 7, 6], np.array([0, 2, 1, 2, 0])
    texts = [rng.integers(5, 64, n) for n in lengths]
    apart = {name: np.zeros((5, 24), np.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")}
    packed = {name: np.zeros((2, 24), np.int32) for name in apart}
    label = np.full((2, 3), -1)
    starts = {0: [(0, 0), (1, 5), (2, 14)], 1: [(3, 0), (4, 7)]}  # row → (text, start)
    for row, members in starts.items():
        for place, (text, start) in enumerate(members):
            n = lengths[text]
            for batch, r, s, segment in ((apart, text, 0, 1), (packed, row, start, place + 1)):
                batch["input_ids"][r, s : s + n] = texts[text]
                batch["segment_ids"][r, s : s + n] = segment
                batch["positions"][r, s : s + n] = np.arange(n)
            label[row, place] = labels[text]
    apart["label"], packed["label"], packed["text"] = labels, label, np.zeros_like(label)
    apply, objective = make_apply(config.make("float64")), Classify(3).make(VOCAB)
    module = config.make("float64")

    def run(module: Any, batch: Any) -> None:
        def call(params: None, inputs: Any = None, *, method: str = "__call__", rng: None = None, **named: Any) -> Any:
            return module.run(inputs, method, None, named)

        objective.loss(call, None, batch, None)

    params = nn.unbox(nn.init(run, module)({"params": jax.random.key(0)}, jax.tree.map(jnp.asarray, apart)))["params"]
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    results = [loss_and_grads(objective, apply, params, jax.tree.map(jnp.asarray, b), None, 1) for b in (apart, packed)]
    (one, metrics, grads), (two, other, packed_grads) = results
    assert float(one) == pytest.approx(float(two), rel=1e-9)
    assert mean(metrics["accuracy"]) == mean(other["accuracy"]) and metrics["accuracy"].weight == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), grads, packed_grads)


def test_ordered_labels_have_probabilities_that_fall_with_the_questions():
    hidden = jnp.array([[2.0, -1.0], [-1.0, 1.0]])

    def apply(params, inputs=None, *, method="__call__", rng=None, **named):
        return hidden if method == "class_logits" else jnp.zeros((2, 3, 4))

    names = ("input_ids", "segment_ids", "positions", "type_ids")
    batch = {name: jnp.ones((2, 3), int) for name in names} | {"label": jnp.zeros(2, int)}
    answer = ClassifyOrdinal(3).make(Vocab(size=9)).predict(apply, {}, batch)
    above = -np.sort(-1 / (1 + np.exp(-np.asarray(hidden))), axis=-1)
    np.testing.assert_allclose(answer["probabilities"].sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(answer["probabilities"][:, 2], above[:, 1], rtol=1e-6)
    assert answer["number"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("objective", "target"),
    [(Classify(), "labels"), (ClassifyMany(), "label"), (ClassifyOrdinal(), "number"), (Regress(), "label")],
)
def test_data_with_another_kind_of_target_is_refused(objective, target: str):
    data = data_with(Labels(("a", "b"), kind=target))
    with pytest.raises(UserError, match=f"needs data with data.target=.*, not '{target}'"):
        objective.infer(data)
