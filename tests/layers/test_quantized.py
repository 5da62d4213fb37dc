"""Weights of 8 bits: their error is at most half a step, and products with them are what the formula says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers.linear import linear, tied_matmul
from bertgpt.layers.quantized import (
    DYNAMIC_ROWS,
    Quantized,
    dequantize_params,
    pack,
    quantize,
    quantize_params,
    summed_axis,
    unpack,
)

RNG = np.random.default_rng(0)
KERNEL = (RNG.normal(size=(24, 3, 5)) * RNG.exponential(size=(1, 3, 5))).astype(np.float32)


def naive(x: np.ndarray, w: Quantized) -> np.ndarray:
    """The formula of `layers.quantized` in float64, with activations of 8 bits; w is [D, F]."""
    step = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True) / 127
    return np.rint(x / step) @ w.values.astype(np.float64) * step * w.scale


def test_every_weight_is_off_by_at_most_half_a_step_of_its_channel():
    w = quantize(KERNEL, axis=0)
    assert w.values.dtype == np.int8 and w.scale.shape == (1, 3, 5) and w.shape == KERNEL.shape
    np.testing.assert_allclose(w.scale[0], np.abs(KERNEL).max(axis=0) / 127, rtol=1e-6)
    error = np.abs(KERNEL.astype(np.float64) - w.values.astype(np.float64) * w.scale)
    assert (error <= w.scale.astype(np.float64) / 2 * (1 + 1e-6)).all() and error.max() > 0
    assert np.abs(w.values).max(axis=0).min() == 127  # each channel uses all of its range
    np.testing.assert_array_equal(quantize(np.zeros((4, 2), np.float32), 0).astype(np.float32), np.zeros((4, 2)))


def test_products_of_many_rows_round_the_activations_by_row_and_those_of_few_do_not():
    w, bias = quantize(KERNEL, axis=0), RNG.normal(size=(3, 5)).astype(np.float32)
    many = RNG.normal(size=(2, DYNAMIC_ROWS, 24)).astype(np.float32)
    on_device = jax.device_put(w)
    found = linear(jnp.asarray(many), on_device, jnp.asarray(bias))
    expected = naive(many.reshape(-1, 24), w.matrix()).reshape(2, DYNAMIC_ROWS, 3, 5) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    few = many[0, : DYNAMIC_ROWS - 1]
    exact = np.einsum("nd,dhk->nhk", few.astype(np.float64), w.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(linear(jnp.asarray(few), on_device), exact, rtol=1e-5, atol=1e-5)
    assert not np.asarray(linear(jnp.zeros((8, 24)), on_device)).any()  # rows of zeros have no step


def test_a_table_is_looked_up_by_row_and_gives_logits():
    table = RNG.normal(size=(30, 24)).astype(np.float32)
    w, x = quantize(table, axis=1), RNG.normal(size=(6, 24)).astype(np.float32)
    ids = jnp.asarray([[3, 29], [0, 3]])
    np.testing.assert_allclose(jax.device_put(w)[ids], w.astype(np.float32)[np.asarray(ids)], rtol=1e-6)
    transposed = Quantized(w.values.T, w.scale.T)
    np.testing.assert_allclose(
        tied_matmul(jnp.asarray(x), jax.device_put(w)), naive(x, transposed), rtol=1e-5, atol=1e-5
    )


def test_the_gradient_of_the_input_ignores_the_rounding():
    w = quantize(KERNEL.reshape(24, 15), axis=0)
    x, g = (RNG.normal(size=(8, n)).astype(np.float32) for n in (24, 15))
    _, pull = jax.vjp(lambda x: linear(x, jax.device_put(w)), jnp.asarray(x))
    np.testing.assert_allclose(pull(jnp.asarray(g))[0], g @ w.astype(np.float32).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "path, ndim, axis",
    [
        ("encoder/attention/query/kernel", 4, 1),  # [L, D, H, K]
        ("encoder/block/mlp/up/kernel", 3, 1),  # ALBERT's groups
        ("decoder/block_1/experts/up", 4, 2),  # [L, E, D, F]
        ("generator/encoder/mlp/down/kernel", 3, 1),
        ("embeddings/token", 2, 1),
        ("token", 2, 1),
        ("lm_head", 2, 0),
        ("mlm_head/dense/kernel", 2, 0),
        ("encoder/mlp_adapter/up/kernel", 3, 1),
        ("encoder/mlp/up/bias", 2, None),
        ("embeddings/type", 2, None),
        ("classifier/dense/kernel", 2, None),
        ("task_ner/tagger/dense/kernel", 2, None),
        ("pooler/kernel", 2, None),
    ],
)
def test_the_axis_that_is_summed_over(path: str, ndim: int, axis: int | None):
    assert summed_axis(tuple(path.split("/")), ndim) == axis


def test_parameters_survive_the_way_to_disk_and_back():
    params = {"embeddings": {"token": RNG.normal(size=(50, 24)), "norm": {"scale": np.ones(24)}}}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    small = quantize_params(params)
    again = unpack(pack(small))
    assert isinstance(again["embeddings"]["token"], Quantized)
    jax.tree.map(np.testing.assert_array_equal, again, small)
    whole = dequantize_params(again)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    np.testing.assert_array_equal(whole["embeddings"]["norm"]["scale"], 1.0)
    assert 0 < np.abs(whole["embeddings"]["token"] - params["embeddings"]["token"]).max() < 0.02
