"""Dropout's bits: uniform, independent of place and key, the same forward, backward and on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertgpt.layers.dropout import dropout, hash_bits, kept, places, threshold


def deviations(counts, trials, probability):
    """How many standard deviations binomial counts lie from their mean."""
    return np.abs(counts - trials * probability) / np.sqrt(trials * probability * (1 - probability))


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_decisions_do_not_depend_on_those_of_neighbours_or_of_other_keys(rate, impl):
    shape = (64, 128, 32)
    keys = [jax.random.key(seed, impl=impl) for seed in range(4)]  # words that differ in one bit
    masks = [~np.asarray(kept(key, *places(shape), rate)) for key in keys]
    for mask in masks:
        assert deviations(mask.sum(), mask.size, rate) < 5
        assert deviations(mask.sum(axis=(1, 2)), 128 * 32, rate).max() < 5
        assert deviations(mask.sum(axis=0), 64, rate).max() < 6
        for axis, distance in [(0, 1), (1, 1), (2, 1), (2, 8)]:
            rolled = mask & np.roll(mask, distance, axis)
            assert deviations(rolled.sum(), mask.size, rate**2) < 6
    for a, b in [(0, 1), (1, 2), (2, 3), (0, 3)]:
        assert deviations((masks[a] & masks[b]).sum(), masks[a].size, rate**2) < 5


def test_every_bit_and_every_byte_is_uniform():
    bits = np.asarray(hash_bits(jax.random.key_data(jax.random.key(3)), *places((256, 4096))))
    ones = np.array([((bits >> np.uint32(bit)) & 1).sum() for bit in range(32)])
    assert deviations(ones, bits.size, 0.5).max() < 5
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((bits >> np.uint32(shift)) & 255).ravel(), minlength=256)
        assert deviations(counts, bits.size, 1 / 256).max() < 5
    assert len(np.unique(bits[0])) == 4096  # a bijection of the columns


def test_places_are_the_indices_of_rows_and_of_columns():
    row, column = places((3, 4, 5))
    np.testing.assert_array_equal(row, np.broadcast_to(np.arange(3)[:, None, None], (3, 4, 5)))
    np.testing.assert_array_equal(column, np.broadcast_to(np.arange(20).reshape(4, 5), (3, 4, 5)))


def test_the_gradient_is_that_of_the_elements_that_stay(rng):
    x, slope = (jnp.asarray(rng.normal(size=(7, 9)), jnp.float32) for _ in range(2))
    y, pull = jax.vjp(lambda x: dropout(jax.random.key(1), x, 0.3), x)
    stay = np.asarray(y) != 0
    np.testing.assert_array_equal(stay, kept(jax.random.key(1), *places(x.shape), 0.3))
    np.testing.assert_allclose(y, np.where(stay, x / 0.7, 0), rtol=1e-6)
    np.testing.assert_allclose(pull(slope)[0], np.where(stay, slope / 0.7, 0), rtol=1e-6)
    scalar = dropout(jax.random.key(1), x[0, 0], 0.3)
    assert scalar.shape == () and float(scalar) in (0.0, pytest.approx(float(x[0, 0]) / 0.7))


def test_nothing_is_stored_for_the_backward_pass_but_the_key():
    def keeps(function):
        residuals = jax.eval_shape(lambda x: jax.vjp(function, x)[1], jnp.zeros((64, 64)))
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert keeps(lambda x: dropout(jax.random.key(1), x, 0.3)) <= 4


def test_devices_decide_for_their_own_share_as_one_device_does_for_all(rng):
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = jnp.asarray(rng.normal(size=(8, 6, 4)), jnp.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, P("a", None, "b")))
    program = jax.jit(lambda x: dropout(jax.random.key(2), x, 0.4))
    np.testing.assert_array_equal(program(sharded), program(x))
    text = program.lower(sharded).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


def test_the_largest_rate_drops_almost_everything():
    assert threshold(0.0) == 0 and threshold(1 - 1e-12) == 2**32 - 1
