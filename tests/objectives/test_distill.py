"""Distillation: each term is its paper's formula, and a student that equals its teacher has nothing left to learn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY, fast

from bertgpt.config import Mesh
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify, ClassifyMany, Regress
from bertgpt.objectives.core import Scores
from bertgpt.objectives.distill import HIDDEN, LOGITS, PROJECTIONS, Distill, Observer
from bertgpt.objectives.distill_losses import agreement, attention_loss, hidden_loss, logits_loss
from bertgpt.objectives.qa import ChooseOne, ExtractSpan
from bertgpt.objectives.similarity import BiEncode
from bertgpt.objectives.tag import Tag
from bertgpt.sharding import make_mesh
from bertgpt.training.state import init_state
from bertgpt.types import Inputs, UserError, Vocab

VOCAB = Vocab(200, pad=0, unk=1, cls=2, sep=3, mask=4)
STILL = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0, stddev=0.3)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.usefixtures("float64")
def test_the_logits_term_is_hintons_formula(rng: np.random.Generator):
    student, teacher = rng.normal(size=(2, 5, 3, 4)) * 3
    weights, temperature = rng.integers(0, 2, (5, 3)), 2.5
    expected = 0.0
    for b in range(5):
        for n in range(3):
            # torch: T² · kl_div(log_softmax(z_S / T), softmax(z_T / T), reduction="sum") of each text
            p, q = softmax(teacher[b, n] / temperature), softmax(student[b, n] / temperature)
            expected += weights[b, n] * temperature**2 * sum(p[c] * (np.log(p[c]) - np.log(q[c])) for c in range(4))
    found = logits_loss(Scores(jnp.asarray(student), jnp.asarray(weights)), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found.sum, expected, rtol=1e-12)
    assert found.weight == weights.sum() > 0

    def value(z: Any) -> Any:
        return logits_loss(Scores(z, jnp.asarray(weights)), jnp.asarray(teacher), temperature).sum

    slope = temperature * (softmax(student / temperature) - softmax(teacher / temperature)) * weights[..., None]
    np.testing.assert_allclose(jax.grad(value)(jnp.asarray(student)), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_labels_on_their_own_are_bernoulli_distributions_and_numbers_have_squared_errors(rng: np.random.Generator):
    student, teacher = rng.normal(size=(2, 6, 3)) * 2
    weights, temperature = np.array([1, 1, 0, 1, 1, 1]), 1.5
    p, q = (1 / (1 + np.exp(-z / temperature)) for z in (teacher, student))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    for kind, each in (("sigmoid", temperature**2 * kl), ("number", (student - teacher) ** 2)):
        scores = Scores(jnp.asarray(student), jnp.asarray(weights), kind)
        found = logits_loss(scores, jnp.asarray(teacher), temperature)
        np.testing.assert_allclose(found.sum, (each.mean(-1) * weights).sum(), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_terms_of_hidden_states_are_mse_and_cosine_over_real_tokens(rng: np.random.Generator):
    student, teacher = rng.normal(size=(2, 3, 2, 5, 4))
    real = np.arange(5) < np.array([[5], [2], [0]])
    mse = cosine = 0.0
    for b, p, s in np.ndindex(3, 2, 5):
        if real[b, s]:
            x, y = student[b, p, s], teacher[b, p, s]
            mse += ((x - y) ** 2).mean()
            cosine += 1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    for kind, expected in (("mse", mse), ("cosine", cosine)):
        found = hidden_loss(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(real), kind)
        np.testing.assert_allclose(found.sum, expected, rtol=1e-12)
        assert found.weight == 7


@pytest.mark.usefixtures("float64")
def test_the_terms_of_attention_are_those_of_minilm_and_tinybert_within_a_document(rng: np.random.Generator):
    student, teacher = rng.normal(size=(2, 2, 1, 3, 4, 5, 6))
    student = student[:, :, :, :2]  # 2 heads of 6 beside 4 of 6, cut into 3 each
    segments = np.array([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]])

    def cut(x: np.ndarray) -> np.ndarray:  # [3, H, S, K] → [3, 3, S, H·K / 3]
        flat = np.stack([np.concatenate(list(each), axis=-1) for each in x])
        return np.stack(np.split(flat, 3, axis=-1), axis=1)

    minilm = scores = pairs = 0.0
    for b in range(2):
        x, y = cut(student[b, 0]), cut(teacher[b, 0])
        for s in range(5):
            near = [t for t in range(5) if segments[b, t] == segments[b, s] > 0]
            pairs += len(near)
            for h in range(3 if near else 0):
                for i, j in ((0, 1), (2, 2)):
                    mine, theirs = (
                        np.array([z[i, h, s] @ z[j, h, t] / np.sqrt(z.shape[-1]) for t in near]) for z in (x, y)
                    )
                    p, q = softmax(theirs), softmax(mine)
                    minilm += (p * np.log(p / q)).sum() / 3
                    scores += ((mine - theirs) ** 2).sum() / 3 if i == 0 else 0.0
    arguments = jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(segments)
    for kind, expected, weight in (("minilm", minilm, 7), ("scores", scores, pairs)):
        found = attention_loss(*arguments, kind, 3)
        np.testing.assert_allclose(found.sum, expected, rtol=1e-12)
        assert found.weight == weight
    with pytest.raises(UserError, match="the student has 2 heads and the teacher 4; relation_heads"):
        attention_loss(*arguments, "minilm")
    with pytest.raises(UserError, match="relation_heads=5 does not divide the width 12"):
        attention_loss(*arguments, "minilm", 5)


@pytest.mark.parametrize("kind", ["minilm", "scores"])
def test_attention_is_that_of_the_layers_of_both_models(kind: str):
    task, batch = CASES["tags"][0], arrays(CASES["tags"][1])
    made = Distill(task, "teacher", hidden_weight=1.0, attention_weight=0.5, attention=kind).make(VOCAB)
    apply, params = start(STILL, made, batch)

    @jax.jit
    def terms_of(params: Any, other: Any, batch: dict) -> Any:
        fields = made.observe(apply, params, batch, STILL.num_layers)
        return fields, [made.loss(apply, each, batch | fields, None).terms for each in (params, other)]

    fields, (same, different) = terms_of(params, jax.tree.map(lambda x: x[..., ::-1], params), batch)
    assert fields[PROJECTIONS].shape == (4, {"minilm": 1, "scores": 2}[kind], 3, 4, 16, 4)
    assert abs(same["teacher_attention"].sum) < 1e-3 < different["teacher_attention"].sum


def test_agreement_counts_equal_choices():
    scores = Scores(jnp.asarray([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), jnp.asarray([1.0, 1.0, 0.0]))
    assert agreement(scores, jnp.asarray([[0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])) == (1.0, 2.0)


TEXT = {
    "input_ids": np.random.default_rng(0).integers(5, 200, (4, 16)),
    "segment_ids": np.repeat(np.array([[1, 2, 2, 0]]), 4, 0).repeat(4, 1),
    "positions": np.tile(np.arange(16), (4, 1)),
    "type_ids": np.zeros((4, 16)),
}
WORDS = {
    "word_positions": np.tile(np.arange(0, 16, 2), (4, 1)),
    "chains": np.tile([1, 1, 2, 2, 2, 2, 0, 0], (4, 1)),
    "edges": np.tile([1, 2, 1, 0, 0, 2, 0, 0], (4, 1)),
    "tags": np.tile([0, 1, 2, 0, -1, 1, -1, -1], (4, 1)),
}
RANGES = dict(zip(("context_start", "context_end", "central_start", "central_end"), (2, 12, 2, 12), strict=True))
WINDOWS = {name: np.full(4, value) for name, value in (RANGES | {"start": 3, "end": 5}).items()}
SINGLE = TEXT | {"segment_ids": TEXT["segment_ids"].clip(max=1)}
CHOICES = {name: np.stack([x, x[::-1], x], 1) for name, x in SINGLE.items()}
CASES: dict[str, tuple[Any, dict]] = {
    "classes": (Classify(num_labels=3), TEXT | {"text": np.ones((4, 2)), "label": np.array([[0, 1], [2, -1]] * 2)}),
    "labels": (ClassifyMany(num_labels=2), SINGLE | {"label": np.array([[0, 1]] * 4)}),
    "number": (Regress(), SINGLE | {"label": np.array([0.5, np.nan, 1.0, 2.0])}),
    "tags": (Tag(("O", "B-X", "I-X")), TEXT | WORDS),
    "crf": (Tag(("O", "B-X", "I-X"), crf=True), TEXT | WORDS),
    "spans": (ExtractSpan(), SINGLE | WINDOWS),
    "choice": (ChooseOne(), CHOICES | {"label": np.array([0, 1, 2, -1])}),
}


def arrays(batch: dict) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" and name == "label" else jnp.int32)
            for name, x in batch.items()}  # fmt: skip


def start(config: BertConfig, objective: Any, batch: dict, seed: int = 0) -> tuple[Any, dict]:
    """(apply, initial parameters)."""
    module, mesh = config.make(), make_mesh(Mesh(), jax.devices()[:1])
    return make_apply(module), init_state(module, objective, optax.identity(), batch, mesh, seed)[0].params


@pytest.mark.parametrize("name", fast(CASES, "classes", "tags"))
def test_a_student_equal_to_its_teacher_learns_from_the_labels_alone(name: str):
    task, batch = CASES[name][0], arrays(CASES[name][1])
    distill = Distill(task, "teacher", logits_weight=0.25, temperature=3.0)
    made, plain = distill.make(VOCAB), task.make(VOCAB)
    apply, params = start(STILL, made, batch)
    other = jax.tree.map(lambda x: x[..., ::-1], params)

    @jax.jit
    def everything(params: Any, other: Any, batch: dict) -> tuple:
        fields = made.observe(apply, params, batch, STILL.num_layers)
        losses = [made.loss(apply, each, batch | fields, None) for each in (params, other)]
        # Without a teacher's fields, as in an evaluation: the task's own loss.
        return fields, *losses, made.loss(apply, params, batch, None), plain.loss(apply, params, batch, None)

    fields, same, different, evaluated, labels = everything(params, other, batch)
    assert set(fields) == {LOGITS} and fields[LOGITS].shape[0] == 4
    np.testing.assert_allclose(same.terms["teacher_logits"].sum, 0.0, atol=1e-4)
    assert different.terms["teacher_logits"].sum > 1e-3 and same.terms["teacher_logits"].weight > 0
    for term, expected in labels.terms.items():
        np.testing.assert_allclose(same.terms[term].sum, 0.75 * expected.sum, rtol=1e-5)
        assert same.terms[term].weight == expected.weight
    jax.tree.map(np.testing.assert_array_equal, evaluated, labels)
    if name not in ("labels", "number"):
        agreed = same.metrics["teacher_agreement"]
        assert agreed.sum == agreed.weight > 0


def test_texts_without_a_label_have_a_teacher():
    task, batch = CASES["classes"][0], arrays(CASES["classes"][1])
    batch["label"] = jnp.full_like(batch["label"], -1)
    made = Distill(task, "teacher").make(VOCAB)
    apply, params = start(STILL, made, batch)
    fields = {LOGITS: jnp.ones((4, 2, 3)) * jnp.arange(3)}
    terms = jax.jit(lambda b: made.loss(apply, params, b, None).terms)(batch | fields)
    assert terms["cross_entropy"].weight == 0 and terms["teacher_logits"].weight == 8
    assert terms["teacher_logits"].sum > 0


def test_layers_of_the_student_have_evenly_spaced_layers_of_the_teacher():
    task = Classify(num_labels=2)
    assert Distill(task, "t", hidden_weight=1.0).pairs(3, 6) == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert Distill(task, "t", hidden_weight=1.0, hidden="cosine").pairs(3, 6) == [(3, 6)]
    assert Distill(task, "t", hidden_weight=1.0, layers=((1, 5),)).pairs(3, 6) == [(1, 5)]
    assert Distill(task, "t").pairs(3, 6) == []
    with pytest.raises(UserError, match="the student has the layers 0 to 3, the teacher 0 to 6"):
        Distill(task, "t", hidden_weight=1.0, layers=((1, 7),)).pairs(3, 6)


def test_hidden_states_are_those_of_the_paired_layers_through_a_projection_where_widths_differ():
    task, batch = CASES["tags"][0], arrays(CASES["tags"][1])
    wide = dataclasses.replace(STILL, d_model=32, num_layers=4)
    made = Distill(task, "teacher", hidden_weight=0.5, layers=((0, 0), (2, 3))).make(VOCAB)
    teacher_apply, teacher = start(wide, task.make(VOCAB), batch, seed=1)
    fields = jax.jit(lambda b: made.observe(teacher_apply, teacher, b, STILL.num_layers))(batch)
    assert fields[HIDDEN].shape == (4, 2, 16, 32)
    inputs = Inputs(*(batch[name] for name in ("input_ids", "segment_ids", "positions", "type_ids")))
    _, tree = jax.jit(lambda p, x: teacher_apply(p, x, auxiliary="intermediates"))(teacher, inputs)
    np.testing.assert_allclose(fields[HIDDEN][:, 0], tree["embedded"][0], rtol=1e-6)
    np.testing.assert_allclose(fields[HIDDEN][:, 1], tree["encoder"]["hidden"][0][2], rtol=1e-6)
    apply, params = start(STILL, made, batch | fields)
    kernel = params["state_projection"]["dense"]["kernel"]
    assert kernel.shape == (16, 32)
    _, own = jax.jit(lambda p, x: apply(p, x, auxiliary="intermediates"))(params, inputs)
    expected = 0.0
    for mine, theirs in (
        (own["embedded"][0], fields[HIDDEN][:, 0]),
        (own["encoder"]["hidden"][0][1], fields[HIDDEN][:, 1]),
    ):
        error = ((np.asarray(mine) @ np.asarray(kernel) - theirs) ** 2).mean(-1)
        expected += (error * (np.asarray(batch["segment_ids"]) > 0)).sum()
    found = jax.jit(lambda b: made.loss(apply, params, b, None))(batch | fields)
    np.testing.assert_allclose(found.metrics["teacher_hidden"].sum, expected, rtol=1e-5)
    np.testing.assert_allclose(found.terms["teacher_hidden"].sum, 0.5 * expected, rtol=1e-5)


def test_the_model_runs_once_though_loss_and_logits_both_ask_for_it():
    task, batch = CASES["classes"][0], arrays(CASES["classes"][1])
    apply, params = start(STILL, task.make(VOCAB), batch)
    calls = []

    def counted(params: Any, inputs: Any = None, *, method: str = "__call__", **named: Any) -> Any:
        calls.append(method)
        return apply(params, inputs, method=method, **named)

    def run(batch: dict) -> None:
        made, seen = task.make(VOCAB), Observer(counted, "intermediates")
        made.loss(seen, params, batch, None)
        made.logits(seen, params, batch, None)
        assert calls.count("__call__") == 1 and len(seen.states()) == 3
        made.loss(seen, params, {**batch, "input_ids": batch["input_ids"] + 1}, None)
        assert calls.count("__call__") == 2

    jax.eval_shape(run, batch)


def test_what_cannot_be_distilled_is_named():
    with pytest.raises(UserError, match="BiEncode has no logits"):
        Distill(BiEncode("negatives"), "teacher").make(VOCAB)
    with pytest.raises(UserError, match="leave nothing to learn"):
        Distill(Classify(), "teacher", logits_weight=0.0)
    with pytest.raises(UserError, match="objective must be that of a task"):
        Distill(Distill(Classify(), "teacher"), "teacher")
    with pytest.raises(UserError, match="teacher='' must name a model"):
        Distill(Classify(), "")
    task, batch = CASES["tags"][0], arrays(CASES["tags"][1])
    made = Distill(task, "teacher", hidden_weight=1.0, hidden="cosine").make(VOCAB)
    apply, params = start(STILL, made, batch)
    fields = {LOGITS: jnp.zeros((4, 8, 3)), HIDDEN: jnp.zeros((4, 1, 16, 8))}
    with pytest.raises(UserError, match="cosine' needs states of one width, not 16 and 8"):
        jax.eval_shape(lambda b: made.loss(apply, params, b, None), batch | fields)
    assert T5Config.architecture not in Distill(task, "teacher").architectures
