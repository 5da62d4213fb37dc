"""Attention in blocks is attention: values, gradients and memory against all scores at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers.attention import attend
from bertgpt.layers.chunked import _split, block_sizes, chunked_attention, joined
from bertgpt.layers.masks import Mask
from bertgpt.layers.position import RelativePositions, bias_of


def inputs(rng, length, keys=None, dtype=jnp.float64, batch=2, heads=2, width=8):
    shapes = [(batch, heads, n, width) for n in (length, keys or length, keys or length)]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def packed(rng, length, batch=2):
    """Segment ids of several documents and padding."""
    ends = np.sort(rng.integers(1, length, (batch, 3)), axis=1)
    number = (np.arange(length)[None, :, None] >= ends[:, None]).sum(-1) + 1
    return jnp.asarray(np.where(number == 4, 0, number), jnp.int32)


def bias_for(rng, segments, length, bidirectional=True, dtype=np.float64):
    positions = jnp.arange(length)[None] if segments is None else jnp.asarray(rng.integers(0, 40, segments.shape))
    return RelativePositions(
        jnp.asarray(rng.normal(size=(8, 2)).astype(dtype)), positions, positions, bidirectional, 20
    )


def compare(arrays, mask, bias, block, tolerance=1e-12):
    """Values and gradients in blocks against those of `attend`."""
    table = None if bias is None else bias.table
    weight = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape).astype(arrays[0].dtype)

    def chunked(table, *arrays):
        given = None if bias is None else dataclasses.replace(bias, table=table)
        return jnp.sum(weight * chunked_attention(*arrays, mask, given, block=block))

    def naive(table, *arrays):
        given = bias
        if bias is not None:
            given = bias_of(table, bias.query, bias.key, bias.bidirectional, bias.max_distance)
        return jnp.sum(weight * attend(*arrays, mask.dense(arrays[0].shape[2]), given))

    which = (1, 2, 3) if bias is None else (0, 1, 2, 3)
    got, want = (jax.jit(jax.value_and_grad(f, which))(table, *arrays) for f in (chunked, naive))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max())))


CASES = {
    "all": lambda rng, s: (Mask(), None),
    "packed": lambda rng, s: ((lambda seg: Mask(seg, seg))(packed(rng, s)), None),
    "causal": lambda rng, s: (Mask(causal=True), None),
    "causal packed": lambda rng, s: ((lambda seg: Mask(seg, seg, causal=True))(packed(rng, s)), None),
    "window": lambda rng, s: (Mask(causal=True, window=5), None),
    "prefix": lambda rng, s: (
        Mask(bidirectional=jnp.arange(s)[None] < jnp.asarray([[s // 2], [3]]), causal=True),
        None,
    ),
    "bias": lambda rng, s: (Mask(), bias_for(rng, None, s)),
    "causal packed bias": lambda rng, s: (
        lambda seg: (Mask(seg, seg, causal=True), bias_for(rng, seg, s, bidirectional=False))
    )(packed(rng, s)),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_the_values_and_gradients_of_all_scores_at_once(case, rng, float64):
    for length, block in ((64, 16), (41, 16)):
        mask, bias = CASES[case](rng, length)
        compare(inputs(rng, length), mask, bias, block)


@pytest.mark.parametrize("length", [128, 192, 320, 512, pytest.param(2048, marks=pytest.mark.slow)])
def test_so_they_do_at_the_lengths_of_experiments(length, rng, float64):
    mask, bias = CASES["causal packed bias"](rng, length)
    compare(inputs(rng, length), mask, bias, 128 if length < 512 else 512)


@pytest.mark.parametrize("length", [64, 320])
def test_they_do_in_float32(length, rng):
    segments = packed(rng, length)
    mask, bias = Mask(segments, segments, causal=True), bias_for(rng, segments, length, False, np.float32)
    compare(inputs(rng, length, dtype=jnp.float32), mask, bias, 64, tolerance=5e-6)


def test_queries_that_see_no_key_attend_to_all_of_them_as_before(rng, float64):
    """Padding of a decoder has no padding to attend to where the encoder's row is full."""
    arrays = inputs(rng, 20, keys=37)
    mask = Mask(jnp.asarray([[1] * 12 + [0] * 8] * 2), jnp.ones((2, 37), jnp.int32))
    compare(arrays, mask, None, 16)


def test_dropout_drops_the_weights_that_it_drops_of_all_scores_at_once(rng, float64):
    arrays, key, rate, mask = inputs(rng, 40), jax.random.key(5), 0.3, Mask(causal=True)

    def at_once(*arrays):
        return jnp.sum(jnp.sin(attend(*arrays, mask.dense(40), None, rate, key)))

    def chunked(*arrays):
        return jnp.sum(jnp.sin(chunked_attention(*arrays, mask, None, rate, key, block=16)))

    got, want = (jax.value_and_grad(f, (0, 1, 2))(*arrays) for f in (chunked, at_once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)
    without = at_once(*arrays) - jnp.sum(jnp.sin(attend(*arrays, mask.dense(40))))
    assert abs(float(without)) > 1e-3  # something was dropped


def test_blocks_cover_a_length_and_come_back_joined(rng):
    assert block_sizes(300, 512) == (1, 300) and block_sizes(1100, 512) == (3, 368)
    x = inputs(rng, 41, dtype=jnp.float32)
    queries, _ = _split(*x, (None,) * 5, (block_sizes(41, 16), block_sizes(41, 16)))
    np.testing.assert_array_equal(joined(queries.query, 41), x[0])


def test_memory_does_not_grow_with_the_square_of_the_length(rng):
    def temporary(length, kind):
        arrays = [jax.ShapeDtypeStruct((1, 4, length, 32), jnp.float32)] * 3
        mask = Mask(causal=True)

        def loss(*arrays):
            if kind == "chunked":
                return jnp.sum(chunked_attention(*arrays, mask, block=256) ** 2)
            return jnp.sum(attend(*arrays, mask.dense(length)) ** 2)

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * 2048 * 2048 * 4
    assert temporary(2048, "xla") > scores
    assert temporary(2048, "chunked") < scores / 4
    assert temporary(4096, "chunked") < 2.1 * temporary(2048, "chunked")
