"""The shared layers, each against its definition."""

from math import erf, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers.attention import attention
from bertgpt.layers.dropout import dropout
from bertgpt.layers.linear import ENOUGH_ROWS, bfloat16_matmul, cpu_has_bfloat16, linear, matmul
from bertgpt.layers.masks import segment_mask
from bertgpt.layers.mlp import ACTIVATIONS
from bertgpt.layers.norm import layer_norm


def test_attention_is_softmax_of_scaled_products(rng):
    q, k, v = (jnp.asarray(rng.normal(size=(2, s, 3, 4)), jnp.float32) for s in (5, 7, 7))
    mask = jnp.asarray(rng.random((2, 1, 5, 7)) < 0.7).at[..., 0].set(True)
    got = attention(q, k, v, mask)
    for b in range(2):
        for h in range(3):
            scores = np.asarray(q[b, :, h] @ k[b, :, h].T) / 2.0
            weights = np.where(mask[b, 0], np.exp(scores), 0)
            np.testing.assert_allclose(
                got[b, :, h], weights / weights.sum(-1, keepdims=True) @ v[b, :, h], rtol=1e-5, atol=1e-6
            )


def test_a_segment_sees_itself_alone():
    mask = segment_mask(jnp.asarray([[1, 1, 2, 0]]))[0, 0]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_linear_contracts_the_last_axis(rng):
    x, w, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 4), (4, 5, 6), (5, 6)))
    np.testing.assert_allclose(linear(x, w, b), jnp.einsum("bsd,dhk->bshk", x, w) + b, rtol=1e-5, atol=1e-5)


def test_layer_norm_has_mean_zero_and_variance_one_in_any_type(rng):
    x = jnp.asarray(rng.normal(3.0, 5.0, size=(4, 64)), jnp.float32)
    y = layer_norm(x, jnp.ones(64), jnp.zeros(64), 1e-12)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-4)
    assert layer_norm(x.astype(jnp.bfloat16), jnp.ones(64), jnp.zeros(64), 1e-12).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_the_asked_for_share_and_keeps_the_mean(rate):
    x = jnp.ones((999, 1001))
    y = np.asarray(dropout(jax.random.key(0), x, rate))
    n = y.size
    assert abs((y == 0).sum() - n * rate) < 5 * np.sqrt(n * rate * (1 - rate)) + n / 65536
    assert y.mean() == pytest.approx(1.0, abs=5 * np.sqrt(rate / (1 - rate) / n))
    assert len(np.unique(y)) == 2


def test_activations_are_their_definitions():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    exact = np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in x])
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=2e-6)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), tanh, atol=2e-6)
    assert np.abs(exact - tanh).max() > 1e-4  # two functions, not one
    np.testing.assert_array_equal(ACTIVATIONS["relu"](x), np.maximum(x, 0))


def test_products_in_bfloat16_round_factors_and_results_and_nothing_else(rng):
    x, w, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((40, 24), (24, 10), (40, 10)))
    out, back = jax.vjp(bfloat16_matmul, x, w)
    half = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, w, g)]
    for got, want in zip((out, *back(g)), (half[0] @ half[1], half[2] @ half[1].T, half[0].T @ half[2]), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=2**-8, atol=1e-5)


def test_bfloat16_is_used_only_where_it_is_asked_for_and_pays(rng, monkeypatch):
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((ENOUGH_ROWS, 24), (24, 10)))
    monkeypatch.setattr("bertgpt.layers.linear.cpu_has_bfloat16", lambda: True)
    with jax.default_matmul_precision("bfloat16"):
        np.testing.assert_array_equal(matmul(x, w), bfloat16_matmul(x, w))
        np.testing.assert_array_equal(matmul(x[1:], w), x[1:] @ w)
    np.testing.assert_array_equal(matmul(x, w), x @ w)
    monkeypatch.setattr("bertgpt.layers.linear.cpu_has_bfloat16", lambda: False)
    with jax.default_matmul_precision("bfloat16"):
        np.testing.assert_array_equal(matmul(x, w), x @ w)


def test_instructions_for_bfloat16_are_read_from_the_description_of_the_cpu(tmp_path):
    lines = "processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx2 {}fma\n\nprocessor\t: 1\n"
    for name, flag, has in [("zen4", "avx512_bf16 ", True), ("sapphire", "amx_bf16 ", True), ("haswell", "", False)]:
        (tmp_path / name).write_text(lines.format(flag), encoding="utf-8")
        assert cpu_has_bfloat16(tmp_path / name) is has
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n", encoding="utf-8")
    assert not cpu_has_bfloat16(tmp_path / "arm") and not cpu_has_bfloat16(tmp_path / "absent")
