"""Losses of spans and choices against their formulas in double precision, and spans against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.objectives.qa import ChooseOne, ExtractSpan, best_spans
from bertgpt.types import UserError, Vocab

VOCAB = Vocab(50, pad=0, cls=1, sep=2)
PLACES = ("start", "end", "context_start", "context_end", "central_start", "central_end")


def fake_apply(params, inputs=None, *, method="__call__", rng=None, **named):
    """A model whose scores are its parameters."""
    if method == "__call__":
        return jnp.zeros((*inputs.input_ids.shape, 1))
    return params


def windows(rng: np.random.Generator, rows: int, length: int) -> dict[str, jax.Array]:
    """Windows with an answer, without one, to be ignored, and a row that only fills up the batch."""
    ids = np.ones((rows, length), np.int32)
    columns = {name: np.full(rows, -1, np.int32) for name in PLACES}
    for row in range(rows - 1):
        first, stop = rng.integers(2, 5), rng.integers(length - 4, length)
        start = rng.integers(first, stop)
        columns["context_start"][row], columns["context_end"][row] = first, stop
        columns["central_start"][row], columns["central_end"][row] = first + 1, stop - 1
        columns["start"][row], columns["end"][row] = start, rng.integers(start, stop)
    columns["start"][0] = columns["end"][0] = 0
    columns["start"][1] = columns["end"][1] = -1
    batch = {"input_ids": ids, "segment_ids": ids, "positions": ids, "type_ids": ids} | columns
    return {name: jnp.asarray(array) for name, array in batch.items()}


def span_formula(scores: np.ndarray, batch: dict[str, jax.Array]) -> tuple[float, np.ndarray]:
    """Mean over windows of −½ Σ log softmax over [CLS] and the context, and its gradient, place by place."""
    batch = jax.tree.map(np.asarray, batch)
    count, gradient, total = 0, np.zeros_like(scores), 0.0
    for row in range(len(scores)):
        if batch["start"][row] < 0:
            continue
        count += 1
        allowed = [0, *range(batch["context_start"][row], batch["context_end"][row])]
        for side, name in enumerate(("start", "end")):
            weights = {place: np.exp(scores[row, place, side]) for place in allowed}
            total -= 0.5 * np.log(weights[batch[name][row]] / sum(weights.values()))
            for place in allowed:
                hit = float(place == batch[name][row])
                gradient[row, place, side] += 0.5 * (weights[place] / sum(weights.values()) - hit)
    return total / count, gradient / count


def test_the_span_loss_and_its_gradient_are_those_of_the_formula(rng: np.random.Generator, float64):
    batch, scores = windows(rng, 8, 12), rng.normal(size=(8, 12, 2))
    objective = ExtractSpan().make(VOCAB)

    def value(scores):
        term = objective.loss(fake_apply, scores, batch, None).terms["cross_entropy"]
        return term.sum / term.weight

    loss, gradient = jax.value_and_grad(value)(jnp.asarray(scores))
    expected, expected_gradient = span_formula(scores, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-14)
    weight = objective.loss(fake_apply, jnp.asarray(scores), batch, None).terms["cross_entropy"].weight
    assert weight == 6  # neither the ignored window nor the one that fills up


def test_the_best_spans_are_those_of_enumeration(rng: np.random.Generator):
    start, end = rng.normal(size=(2, 4, 10)).astype(np.float32)
    found = jax.device_get(best_spans(jnp.asarray(start), jnp.asarray(end), 3, 7))
    for row in range(4):
        every = [
            (float(start[row, i] + end[row, j]), i, j)
            for i, j in itertools.product(range(10), repeat=2)
            if i <= j < i + 3
        ]
        expected = sorted(every, reverse=True)[:7]
        got = list(zip(*(found[name][row] for name in ("span_score", "span_start", "span_end")), strict=True))
        assert [(int(i), int(j)) for _, i, j in got] == [(i, j) for _, i, j in expected]
        np.testing.assert_allclose([score for score, _, _ in got], [score for score, _, _ in expected], rtol=1e-6)


def test_predicted_spans_lie_in_the_context_and_start_where_it_is_widest(rng: np.random.Generator):
    batch, scores = windows(rng, 6, 12), rng.normal(size=(6, 12, 2)).astype(np.float32)
    answer = jax.device_get(
        ExtractSpan(max_answer=4, n_best=50).make(VOCAB).predict(fake_apply, jnp.asarray(scores), batch)
    )
    np.testing.assert_allclose(answer["null_score"], scores[:, 0].sum(-1), rtol=1e-6)
    for row in range(6):
        real = answer["span_score"][row] > -1e29
        spans = set(zip(answer["span_start"][row][real].tolist(), answer["span_end"][row][real].tolist(), strict=True))
        central = range(batch["central_start"][row], batch["central_end"][row])
        assert spans == {(i, j) for i in central for j in range(i, min(i + 4, batch["context_end"][row]))}


def test_spans_need_a_tokenizer_with_a_cls_token():
    with pytest.raises(UserError, match="span answers need an encoder"):
        ExtractSpan().make(Vocab(50, eos=3))


@pytest.mark.parametrize("settings", [{"max_answer": 0}, {"n_best": 0}])
def test_impossible_settings_are_refused(settings: dict):
    with pytest.raises(UserError, match="must be at least 1"):
        ExtractSpan(**settings)


def choices(counts: list[int], labels: list[int]) -> dict[str, jax.Array]:
    there = (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int32)
    ids = jnp.asarray(np.repeat(there[..., None], 5, axis=2))
    names = ("input_ids", "segment_ids", "positions", "type_ids")
    return dict.fromkeys(names, ids) | {"label": jnp.asarray(labels, jnp.int32)}


def test_the_loss_of_a_choice_and_its_gradient_are_those_of_the_formula(rng: np.random.Generator, float64):
    counts, labels = [3, 2, 3, 4, 0], [2, 0, 1, 3, -1]  # the last row only fills up the batch
    batch, scores = choices(counts, labels), rng.normal(size=(20, 1))
    objective = ChooseOne().make(VOCAB)

    def value(scores):
        term = objective.loss(fake_apply, scores, batch, None).terms["cross_entropy"]
        return term.sum / term.weight

    expected, gradient = 0.0, np.zeros((5, 4))
    for row, (count, label) in enumerate(zip(counts[:4], labels[:4], strict=True)):
        p = np.exp(scores.reshape(5, 4)[row, :count])
        p /= p.sum()
        expected -= np.log(p[label]) / 4
        gradient[row, :count] = (p - np.eye(4)[label, :count]) / 4
    loss, found = jax.value_and_grad(value)(jnp.asarray(scores))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(found.reshape(5, 4), gradient, atol=1e-14)


def test_what_is_no_choice_has_no_probability(rng: np.random.Generator):
    batch = choices([3, 2], [0, 0])
    scores = jnp.asarray(rng.normal(size=(6, 1)), jnp.float32)
    found = np.asarray(ChooseOne().make(VOCAB).predict(fake_apply, scores, batch)["probabilities"])
    assert found[1, 2] == 0.0 and (found[0] > 0).all()
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-6)


def test_the_model_sees_each_choice_as_a_row(rng: np.random.Generator):
    ids = rng.integers(1, 50, (2, 3, 5)).astype(np.int32)
    batch = choices([3, 3], [0, 1]) | {"input_ids": jnp.asarray(ids)}
    seen = {}

    def watching(params, inputs=None, *, method="__call__", rng=None, **named):
        seen[method] = inputs or named
        return fake_apply(params, inputs, method=method, **named)

    ChooseOne().make(VOCAB).loss(watching, jnp.zeros((6, 1)), batch, None)
    np.testing.assert_array_equal(seen["__call__"].input_ids, ids.reshape(6, 5))
    assert seen["class_logits"]["segment_ids"].shape == (6, 5) and seen["class_logits"]["num_labels"] == 1
