"""Token losses: gradients against plain cross-entropy, and logits that never exist for all positions at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.objectives import core
from bertgpt.objectives.core import is_highest, regularized_loss, token_losses

B, M, D, V = 4, 12, 8, 50


def head(params, *, method, hidden, rng=None):
    """A tied output layer with a bias."""
    del method, rng
    return hidden @ params["table"].T + params["bias"]


def example(rng, dtype):
    params = {"table": rng.normal(size=(V, D)), "bias": rng.normal(size=V)}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    hidden, weights = jnp.asarray(rng.normal(size=(B, M, D)), dtype), jnp.asarray(rng.random((B, M)), dtype)
    return params, hidden, jnp.asarray(rng.integers(0, V, (B, M))), weights


def plain(params, hidden, labels, weights, smoothing, z_loss):
    """The definition, by log-softmax."""
    logits = head(params, method="", hidden=hidden)
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(weights * ((1 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=-1) + z_loss * log_z**2))


def ours(params, hidden, labels, weights, smoothing, z_loss):
    losses = token_losses(head, params, hidden, labels, method="lm_logits")
    return jnp.sum(regularized_loss(losses, weights, smoothing, z_loss))


@pytest.mark.parametrize("most", [2**27, 3 * B * V])  # one chunk, four
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.1, 1e-2)])
def test_losses_and_gradients_are_those_of_the_definition(most, smoothing, z_loss, rng, monkeypatch, float64):
    monkeypatch.setattr(core, "MAX_LOGITS", most)
    params, *data = example(rng, jnp.float64)
    got, want = (jax.value_and_grad(f, (0, 1))(params, *data, smoothing, z_loss) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), got, want)


def test_they_are_in_float32_too(rng, monkeypatch):
    monkeypatch.setattr(core, "MAX_LOGITS", 3 * B * V)
    params, *data = example(rng, jnp.float32)
    got, want = (jax.value_and_grad(f, (0, 1))(params, *data, 0.1, 1e-3) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * float(np.abs(b).max()))


def test_sampled_tokens_do_not_depend_on_chunks(rng, monkeypatch):
    params, hidden, labels, uniforms = example(rng, jnp.float32)
    sampled = []
    for most in (2**27, 3 * B * V):
        monkeypatch.setattr(core, "MAX_LOGITS", most)
        given = {"method": "lm_logits", "uniforms": uniforms, "vocab_size": V - 5}
        sampled.append(token_losses(head, params, hidden, labels, **given).sampled)
    np.testing.assert_array_equal(*sampled)


def test_logits_of_all_positions_never_exist(monkeypatch):
    """Of the shape of GPT-2: temporaries are a chunk's logits and their gradient, not the 1.6 GB of all logits."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 1024, 64), (50257, 64), (50257,))]
    labels = jax.ShapeDtypeStruct((8, 1024), jnp.int32)

    def loss(hidden, table, bias, labels):
        losses = token_losses(head, {"table": table, "bias": bias}, hidden, labels, method="lm_logits")
        return jnp.sum(regularized_loss(losses, jnp.ones(labels.shape), 0.1, 1e-4))

    def temporaries(most):
        monkeypatch.setattr(core, "MAX_LOGITS", most)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    everything = 4 * 8 * 1024 * 50257
    assert temporaries(2**40) > everything
    chunk = 4 * 2**25
    assert temporaries(2**25) < 4 * chunk < everything / 3  # two of a chunk where the compiler optimises


def test_a_label_is_highest_if_argmax_finds_it_ties_included(rng):
    logits = jnp.asarray(rng.integers(0, 4, (500, 7)), jnp.float32)  # most rows have several highest
    labels = jnp.asarray(rng.integers(0, 7, 500))
    want = np.argmax(np.asarray(logits), axis=-1) == np.asarray(labels)
    assert 20 < want.sum() < 200
    np.testing.assert_array_equal(is_highest(logits, labels), want)
