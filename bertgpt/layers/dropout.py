"""Dropout (Srivastava et al. 2014) whose bits are a hash of the key and each element's place.

Dropout needs one decision for every element of every activation. Numbers of `jax.random`, 20 rounds of threefry each,
took a seventh of a training step, and masks that wait for the backward pass take memory. A hash of a few instructions
is computed inside the loop that reads the activation, again in the backward pass, and by each device for its own share.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32

WEYL = np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B)
"""odd numbers: their multiples tell rows apart in both words of the key"""


def mix(x: UInt32[Array, "..."], key: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of words whose every bit depends on every bit of x, with another word between its two rounds.

    The hash of two multiplications with the least bias that the search of Wellons has found
    (https://github.com/skeeto/hash-prospector). Not for cryptography.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD) ^ key
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)


def hash_bits(
    key: UInt32[Array, " words"], row: UInt32[Array, "..."], column: UInt32[Array, "..."]
) -> UInt32[Array, "..."]:
    """32 bits for each place, uniform and independent as far as dropout can tell.

    Args:
      key: data of a random key, two or four words.
      row: index along the first axis.
      column: index within the row; arrays of more than 2³² elements repeat nothing as long as a row has fewer.
    """
    second, first = (functools.reduce(mix, key, jnp.uint32(salt)) for salt in (1, 2))
    return mix(column ^ (first + row * WEYL[0]), second + row * WEYL[1])


def threshold(rate: float) -> np.uint32:
    """Elements whose bits are below are dropped."""
    return np.uint32(min(round(rate * 2**32), 2**32 - 1))


def places(shape: tuple[int, ...]) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Row and column of each element, as `hash_bits` takes them."""

    def index(axis: int) -> Array:
        return jax.lax.broadcasted_iota(jnp.uint32, shape, axis)

    strides = np.cumprod((1, *shape[:0:-1]), dtype=np.uint64)[::-1][1:].astype(np.uint32)
    column = sum((index(axis) * stride for axis, stride in enumerate(strides, start=1)), jnp.uint32(0))
    return index(0), jnp.broadcast_to(column, shape)


def kept(
    key: Key[Array, ""], row: UInt32[Array, "..."], column: UInt32[Array, "..."], rate: float
) -> Bool[Array, "..."]:
    """Which elements stay, by their places (`places`)."""
    return hash_bits(jax.random.key_data(key), row, column) >= threshold(rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(key: Key[Array, ""], x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and divides the rest by 1 − rate.

    The backward pass computes the same decisions again from the key.
    """
    if x.ndim == 0:
        return dropout(key, x[None], rate)[0]
    return jnp.where(kept(key, *places(x.shape), rate), x * np.asarray(1 / (1 - rate), x.dtype), 0)


dropout.defvjp(
    lambda key, x, rate: (dropout(key, x, rate), key), lambda rate, key, slope: (None, dropout(key, slope, rate))
)


class Dropout(nn.Module):
    """`dropout` if the caller gives a "dropout" key, else the identity."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)
