"""Which implementation computes attention: chosen from the target devices and the shape, refused with a reason."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers import masks
from bertgpt.layers.attention import attend
from bertgpt.layers.chunked import chunked_attention
from bertgpt.layers.masks import Mask, choose, make_mask
from bertgpt.types import UserError

SEGMENTS = Mask(jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), jnp.int32))
SHORT, LONG, HALF = (512, 512), (2048, 2048), jnp.dtype("bfloat16")


@pytest.fixture
def platform(monkeypatch):
    return lambda name: monkeypatch.setattr(masks, "target_platform", lambda: name)


@pytest.mark.parametrize(
    ("device", "mask", "lengths", "dtype", "given", "expected"),
    [
        ("cpu", SEGMENTS, (1024, 1024), HALF, {}, "xla"),
        ("cpu", SEGMENTS, (64, 1025), HALF, {}, "chunked"),
        ("tpu", SEGMENTS, SHORT, HALF, {}, "flash"),
        ("tpu", Mask(causal=True), LONG, HALF, {}, "flash"),
        ("tpu", SEGMENTS, (320, 320), HALF, {}, "xla"),
        ("tpu", SEGMENTS, LONG, HALF, {"dropout": True}, "chunked"),
        ("tpu", SEGMENTS, SHORT, HALF, {"bias": True}, "xla"),
        ("tpu", Mask(causal=True, window=256), LONG, HALF, {}, "chunked"),
        ("gpu", SEGMENTS, SHORT, HALF, {}, "cudnn"),
        ("gpu", SEGMENTS, SHORT, jnp.dtype("float32"), {}, "xla"),
        ("gpu", SEGMENTS, LONG, HALF, {}, "chunked"),
        ("gpu", Mask(causal=True), LONG, HALF, {}, "cudnn"),
    ],
)
def test_auto_is_decided_by_device_and_shape(platform, device, mask, lengths, dtype, given, expected):
    platform(device)
    assert choose("auto", mask, lengths, 64, dtype, **given) == expected


@pytest.mark.parametrize(
    ("device", "asked", "mask", "lengths", "given", "reason"),
    [
        ("cpu", "flash", SEGMENTS, SHORT, {}, "the kernel is for TPUs, and the program for cpu"),
        ("tpu", "cudnn", SEGMENTS, SHORT, {}, "the kernel is for NVIDIA GPUs, and the program for tpu"),
        ("tpu", "flash", SEGMENTS, (200, 200), {}, r"lengths \(200, 200\) must be multiples of 128"),
        ("tpu", "flash", SEGMENTS, SHORT, {"dropout": True}, "no dropout on attention weights"),
        ("tpu", "flash", SEGMENTS, SHORT, {"bias": True}, "would need the relative bias of all pairs"),
        ("gpu", "cudnn", SEGMENTS, LONG, {}, "packed or padded rows of more than 1,024 tokens need a dense mask"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_with_the_reason(platform, device, asked, mask, lengths, given, reason):
    platform(device)
    with pytest.raises(UserError, match=f"model.attention={asked}: .*{reason}.*; auto or chunked computes it"):
        choose(asked, mask, lengths, 64, HALF, **given)


def test_short_sequences_get_the_array_that_they_always_had():
    segments = jnp.asarray([[1, 1, 2, 0]])
    mask = make_mask("auto", (4, 4), 8, jnp.dtype("float32"), Mask(segments, segments, causal=True))
    expected = (segments[:, :, None] == segments[:, None]) & jnp.tril(jnp.ones((4, 4), bool))
    np.testing.assert_array_equal(mask[:, 0], expected)
    assert make_mask("auto", (4, 4), 8, jnp.dtype("float32"), Mask()) is None
    asked = make_mask("chunked", (4, 4), 8, jnp.dtype("float32"), Mask(causal=True))
    assert asked == Mask(causal=True, implementation="chunked")


@pytest.mark.parametrize("rules", [{}, {"causal": True}, {"causal": True, "window": 3}, {"segments": True}])
def test_cudnn_is_called_with_what_it_needs_to_compute_the_same(rules, rng, monkeypatch):
    """By the plain implementation behind the same function: the kernel itself runs in benchmarks/attention.py."""
    plain = functools.partial(jax.nn.dot_product_attention)

    def stand_in(*args, implementation, **named):
        assert implementation == "cudnn"
        return plain(*args, **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    arrays = [jnp.asarray(rng.normal(size=(2, 3, 8, 4)), jnp.float32) for _ in range(3)]
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0]] * 2) if rules.pop("segments", False) else None
    mask = Mask(segments, segments, **rules)
    got = attend(*arrays, dataclasses.replace(mask, implementation="cudnn"))
    np.testing.assert_allclose(got, attend(*arrays, mask.dense(8)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, chunked_attention(*arrays, mask, block=4), rtol=1e-5, atol=1e-6)


def test_the_tpu_kernel_computes_the_same(rng):
    """In the interpreter."""
    from jax.experimental.pallas import tpu as pltpu

    arrays = [jnp.asarray(rng.normal(size=(1, 1, 128, 128)), jnp.float32) / 4 for _ in range(3)]
    segments = jnp.asarray([[1] * 50 + [2] * 60 + [0] * 18])
    mask = Mask(segments, segments, causal=True)

    def loss(mask, *arrays):
        return jnp.sum(jnp.sin(attend(*arrays, mask)))

    with pltpu.force_tpu_interpret_mode():
        got = jax.value_and_grad(loss, (1, 2, 3))(dataclasses.replace(mask, implementation="flash"), *arrays)
    want = jax.value_and_grad(loss, (1, 2, 3))(mask.dense(128), *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
