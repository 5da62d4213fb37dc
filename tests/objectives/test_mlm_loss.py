"""The MLM loss against a transcription of its formula, in float64; docs/mlm_loss.md walks the derivation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY, fast

from bertgpt.config import Mesh
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.core import inputs_of
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.sharding import make_mesh, put_batch, state_shardings
from bertgpt.training.state import init_state
from bertgpt.training.step import loss_and_grads
from bertgpt.types import Apply, Vocab

pytestmark = pytest.mark.usefixtures("float64")
VOCAB = Vocab(size=200, pad=0, unk=1, cls=2, sep=3, mask=4)
EXACT = dict(rtol=1e-10, atol=1e-12)


def formula(h: np.ndarray, e: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """J = −Σ_i log( exp(e_{w_i}ᵀ h_i) / Σ_{w'} exp(e_{w'}ᵀ h_i) ), ∂J/∂h and ∂J/∂e, for h [M, D], e [V, D], w [M]."""
    loss, grad_h, grad_e = 0.0, np.zeros_like(h), np.zeros_like(e)
    for i in range(len(w)):
        scores = np.array([e[v] @ h[i] for v in range(len(e))])
        p = np.exp(scores) / np.sum(np.exp(scores))
        loss -= np.log(p[w[i]])
        for v in range(len(e)):
            grad_h[i] += (p[v] - (v == w[i])) * e[v]
            grad_e[v] += (p[v] - (v == w[i])) * h[i]
    return loss, grad_h, grad_e


def fake_apply(params: dict, inputs=None, *, method: str = "__call__", rng=None, hidden=None) -> jax.Array:
    """A model whose hidden states and embeddings are its parameters."""
    return params["h"] if method == "__call__" else hidden @ params["e"].T


@pytest.fixture
def case(rng: np.random.Generator) -> tuple[dict, dict]:
    """(params, prepared batch): 3 rows of 7 tokens, 4 slots each, of which 3 are empty."""
    params = {"h": rng.normal(size=(3, 7, 5)), "e": rng.normal(size=(11, 5))}
    positions = np.array([[1, 4, 2, 0], [6, 3, 0, 0], [2, 1, 5, 4]])
    weights = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], np.float32)
    batch = {name: np.ones((3, 7), np.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")}
    labels = rng.integers(0, 11, (3, 4))
    return params, batch | {"mlm_positions": positions, "mlm_weights": weights, "mlm_labels": labels}


def picked(params: dict, batch: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(h, w) of the predicted positions, and their rows and places."""
    row, slot = np.nonzero(batch["mlm_weights"])
    place = batch["mlm_positions"][row, slot]
    return params["h"][row, place], batch["mlm_labels"][row, slot], row, place


def value_and_grads(objective: MaskedLM, apply: Apply, params: dict, batch: dict, microbatches: int = 1) -> tuple:
    step = jax.jit(lambda p, b: loss_and_grads(objective.make(VOCAB), apply, p, b, None, microbatches)[::2])
    return step(params, batch)


def test_value_and_both_gradients_are_the_formulas(case: tuple):
    params, batch = case
    h, w, row, place = picked(params, batch)
    expected, grad_h, grad_e = formula(h, params["e"], w)
    value, grads = value_and_grads(MaskedLM(reduction="sum"), fake_apply, params, batch)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, expected, **EXACT)
    np.testing.assert_allclose(grads["h"][row, place], grad_h, **EXACT)
    np.testing.assert_allclose(grads["e"], grad_e, **EXACT)


def test_unmasked_positions_get_exactly_no_gradient_through_the_head(case: tuple):
    params, batch = case
    _, _, row, place = picked(params, batch)
    _, grads = value_and_grads(MaskedLM(reduction="sum"), fake_apply, params, batch)
    unmasked = np.ones((3, 7), bool)
    unmasked[row, place] = False
    assert np.all(np.asarray(grads["h"])[unmasked] == 0.0)
    assert np.all(np.any(np.asarray(grads["h"])[~unmasked] != 0.0, axis=-1))


def test_the_sum_is_additive_over_positions(case: tuple):
    params, batch = case
    whole, _ = value_and_grads(MaskedLM(reduction="sum"), fake_apply, params, batch)
    parts = 0.0
    for row, slot in zip(*np.nonzero(batch["mlm_weights"]), strict=True):
        one = np.zeros_like(batch["mlm_weights"])
        one[row, slot] = 1.0
        parts += value_and_grads(MaskedLM(reduction="sum"), fake_apply, params, batch | {"mlm_weights": one})[0]
    np.testing.assert_allclose(parts, whole, **EXACT)


def test_token_and_sequence_reductions_are_means_of_the_formula(case: tuple):
    params, batch = case
    h, w, row, place = picked(params, batch)
    each = [formula(h[row == r], params["e"], w[row == r])[0] for r in range(3)]
    counts = batch["mlm_weights"].sum(axis=1)
    token, _ = value_and_grads(MaskedLM(reduction="token"), fake_apply, params, batch)
    sequence, _ = value_and_grads(MaskedLM(reduction="sequence"), fake_apply, params, batch)
    np.testing.assert_allclose(token, sum(each) / counts.sum(), **EXACT)
    np.testing.assert_allclose(sequence, np.mean(each / counts), **EXACT)
    # One row of two documents is two sequences: its 4 predictions split 1 and 3.
    segments = np.array([[1] * 7, [1] * 7, [1, 1, 2, 2, 2, 2, 2]], np.int32)
    split, _ = value_and_grads(MaskedLM(reduction="sequence"), fake_apply, params, batch | {"segment_ids": segments})
    parts = [
        formula(h[in_part], params["e"], w[in_part])[0]
        for in_part in ((row == 2) & (place < 2), (row == 2) & (place >= 2))
    ]
    expected = np.mean([each[0] / counts[0], each[1] / counts[1], parts[0] / 1, parts[1] / 3])
    np.testing.assert_allclose(split, expected, **EXACT)


def test_an_empty_batch_has_loss_zero_and_finite_gradients(case: tuple):
    params, batch = case
    for reduction in ("sum", "token", "sequence"):
        value, grads = value_and_grads(
            MaskedLM(reduction=reduction), fake_apply, params, batch | {"mlm_weights": np.zeros((3, 4), np.float32)}
        )
        assert value == 0.0
        assert all(np.all(np.asarray(leaf) == 0.0) for leaf in jax.tree.leaves(grads))


def test_label_smoothing_and_z_loss_are_their_formulas(case: tuple):
    """(1 − ε)(−log p_w) + ε mean_v(−log p_v) + z (log Z)²; reported cross-entropy stays the plain one."""
    params, batch = case
    h, w, _, _ = picked(params, batch)
    scores = h @ params["e"].T
    log_z = np.log(np.sum(np.exp(scores), axis=-1))
    plain, uniform = log_z - scores[np.arange(len(w)), w], np.mean(log_z[:, None] - scores, axis=-1)
    objective = MaskedLM(reduction="sum", label_smoothing=0.1, z_loss=0.01)
    value, _ = value_and_grads(objective, fake_apply, params, batch)
    np.testing.assert_allclose(value, np.sum(0.9 * plain + 0.1 * uniform + 0.01 * log_z**2), **EXACT)
    metrics = objective.make(VOCAB).loss(fake_apply, *jax.tree.map(jnp.asarray, (params, batch)), None).metrics
    np.testing.assert_allclose(metrics["mlm_loss"].sum / metrics["mlm_loss"].weight, np.mean(plain), **EXACT)
    right = np.argmax(scores, axis=-1) == w
    np.testing.assert_allclose(metrics["mlm_accuracy"].sum / metrics["mlm_accuracy"].weight, np.mean(right), **EXACT)


@pytest.mark.parametrize("pair", ["nsp", "sop"])
def test_sentence_pairs_add_the_mean_cross_entropy_of_their_two_classes(case: tuple, pair: str):
    params, batch = case
    logits = np.array([[2.0, -1.0], [0.5, 0.0], [3.0, 9.0]])

    def apply(params: dict, inputs=None, *, method: str = "__call__", rng=None, **named) -> jax.Array:
        return jnp.asarray(logits) if method == "nsp_logits" else fake_apply(params, inputs, method=method, **named)

    batch = batch | {"pair_label": np.array([0, 1, -1], np.int32)}  # the last row only fills up the batch
    nll = np.log(np.sum(np.exp(logits), axis=1))[:2] - logits[[0, 1], [0, 1]]
    loss = MaskedLM(pair=pair).make(VOCAB).loss(apply, *jax.tree.map(jnp.asarray, (params, batch)), None)
    assert set(loss.terms) == {"mlm", pair}
    assert set(loss.metrics) == {
        "mlm_loss",
        "mlm_accuracy",
        *(f"{pair}_{name}" for name in ("loss", "accuracy", "labels")),
    }
    shares = loss.metrics[f"{pair}_labels"]
    assert (shares.sum.tolist(), shares.weight) == ([1.0, 1.0], 2.0)
    np.testing.assert_allclose(loss.terms[pair].sum / loss.terms[pair].weight, np.mean(nll), **EXACT)
    accuracy = loss.metrics[f"{pair}_accuracy"]
    assert (accuracy.sum, accuracy.weight) == (1.0, 2.0)
    whole, _ = value_and_grads(MaskedLM(pair=pair), apply, params, batch)
    alone, _ = value_and_grads(MaskedLM(), apply, params, batch)
    np.testing.assert_allclose(whole, alone + np.mean(nll), **EXACT)


@pytest.mark.slow
def test_count_models_are_asked_for_the_same_words_after_their_uncorrupted_neighbours(rng: np.random.Generator):
    ids = rng.integers(5, 200, (8, 32)).astype(np.int32)
    raw = {"input_ids": jnp.asarray(ids), "segment_ids": jnp.ones((8, 32), jnp.int32)}
    objective = MaskedLM(mask_rate=0.5).make(VOCAB)
    prepared = objective.prepare(jax.random.key(0), raw)
    targets = objective.targets(raw, prepared)
    assert targets.weight.sum() == 8 * 16
    for row, slot in zip(*np.nonzero(targets.weight), strict=True):
        place = int(prepared["mlm_positions"][row, slot])
        assert targets.token[row, slot] == ids[row, place]
        assert targets.left[row, slot] == ids[row, max(place - 1, 0)]


# -- with a real model ------------------------------------------------------------------------------------------------

MODEL = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0)


def init(config: BertConfig, batch: dict, objective: MaskedLM) -> tuple[Apply, dict]:
    """The model's apply, and float64 parameters for what the objective calls."""
    module, mesh = config.make("float64"), make_mesh(Mesh(), jax.devices()[:1])
    batch = jax.tree.map(jnp.asarray, batch)
    state, _ = init_state(module, objective.make(VOCAB), optax.identity(), batch, mesh, seed=0)
    return make_apply(module), jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state.params)


@pytest.fixture
def documents(rng: np.random.Generator) -> list[dict]:
    """64 documents of 4 to 14 tokens, each with 1 to 3 positions to predict."""
    made = []
    for _ in range(64):
        length = int(rng.integers(4, 15))
        ids = rng.integers(5, 200, length)
        positions = rng.choice(length, int(rng.integers(1, 4)), replace=False)
        made.append(
            {
                "ids": np.where(np.isin(np.arange(length), positions), VOCAB.mask, ids),
                "at": positions,
                "labels": ids[positions],
            }
        )
    return made


def pack(rows: list[list[dict]], length: int = 32, slots: int = 12) -> dict:
    """A prepared batch with these documents in these rows."""
    batch = {
        name: np.zeros((len(rows), length), np.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")
    }
    batch |= {name: np.zeros((len(rows), slots), np.int32) for name in ("mlm_positions", "mlm_labels")}
    batch["mlm_weights"] = np.zeros((len(rows), slots), np.float32)
    for r, row in enumerate(rows):
        start = slot = 0
        for segment, document in enumerate(row, start=1):
            here = slice(start, start + len(document["ids"]))
            batch["input_ids"][r, here], batch["segment_ids"][r, here] = document["ids"], segment
            batch["positions"][r, here] = np.arange(len(document["ids"]))
            to = slice(slot, slot + len(document["at"]))
            batch["mlm_positions"][r, to], batch["mlm_labels"][r, to] = document["at"] + start, document["labels"]
            batch["mlm_weights"][r, to] = 1.0
            start, slot = here.stop, to.stop
    return batch


def assert_same(a: tuple, b: tuple):
    np.testing.assert_allclose(a[0], b[0], **EXACT)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), a[1], b[1])


@pytest.mark.parametrize("reduction", fast(["token", "sequence", "sum"], "token"))
def test_microbatches_change_neither_loss_nor_gradient(documents: list, reduction: str):
    objective = MaskedLM(reduction=reduction)
    batch = pack([documents[i : i + 2] for i in range(0, 64, 2)])  # 32 rows with unequal counts
    apply, params = init(MODEL, batch, objective)
    whole = value_and_grads(objective, apply, params, batch, 1)
    for microbatches in (4, 32):
        assert_same(value_and_grads(objective, apply, params, batch, microbatches), whole)


@pytest.mark.slow
def test_devices_change_neither_loss_nor_gradient(documents: list):
    objective = MaskedLM()
    batch = pack([documents[i : i + 2] for i in range(0, 64, 2)])
    apply, params = init(MODEL, batch, objective)
    whole = value_and_grads(objective, apply, params, batch)
    for count in (1, 2, 4, 8):
        mesh = make_mesh(Mesh(data=count), jax.devices()[:count])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, state_shardings(params, mesh))
            step = jax.jit(lambda p, b: loss_and_grads(objective.make(VOCAB), apply, p, b, None, 2)[::2])
            assert_same(step(placed, put_batch(batch, mesh)), whole)


@pytest.mark.slow
def test_packing_changes_neither_loss_nor_gradient(documents: list):
    for reduction in ("sum", "token", "sequence"):
        objective = MaskedLM(reduction=reduction)
        alone = pack([[document] for document in documents])
        apply, params = init(MODEL, alone, objective)
        whole = value_and_grads(objective, apply, params, alone)
        pairs = pack([documents[i : i + 2] for i in range(0, 64, 2)])
        others = pack([[documents[i], documents[63 - i]] for i in range(32)])
        assert_same(value_and_grads(objective, apply, params, pairs), whole)
        assert_same(value_and_grads(objective, apply, params, others), whole)


def test_the_textbook_model_scores_words_by_plain_products_with_the_embedding(documents: list):
    from bertgpt.experiments.pretrain.textbook_mlm import experiment

    assert experiment().model.activation == "relu" and experiment().objective == MaskedLM(reduction="sum")
    plain = dataclasses.replace(MODEL, mlm_head="plain", activation="relu")
    batch = pack([documents[i : i + 2] for i in range(0, 64, 2)])
    apply, params = init(plain, batch, MaskedLM())
    assert "mlm_head" not in params  # no transform and no bias
    h = apply(params, inputs_of(jax.tree.map(jnp.asarray, batch)))
    row, slot = np.nonzero(batch["mlm_weights"])
    expected, _, _ = formula(
        np.asarray(h)[row, batch["mlm_positions"][row, slot]],
        np.asarray(params["embeddings"]["token"]),
        batch["mlm_labels"][row, slot],
    )
    value, _ = value_and_grads(MaskedLM(reduction="sum"), apply, params, batch)
    np.testing.assert_allclose(value, expected, **EXACT)
