"""Relative positions (Raffel et al. 2020 §2.1)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bertgpt.layers.linear import Init


def relative_bucket(
    relative: Int[Array, "..."], bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[Array, "..."]:
    """Number of the bucket of key position − query position.

    Half of the buckets hold one distance each, the other half grow logarithmically up to `max_distance`, and all beyond
    share the last. Bidirectional: half of all buckets for keys to the right; otherwise those count as distance 0.
    """
    offset = jnp.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(relative > 0, num_buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = num_buckets // 2
    # In float32, as the released code does: where a logarithm is nearly whole, its rounding decides the bucket.
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / np.log(max_distance / exact)
    far = exact + (ratio * (num_buckets - exact)).astype(distance.dtype)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


class RelativeBias(nn.Module):
    """A learned number for each bucket and head, added to attention scores."""

    num_heads: int
    bidirectional: bool
    num_buckets: int
    max_distance: int
    kernel_init: Init

    @nn.compact
    def __call__(self, query: Int[Array, "#B S"], key: Int[Array, "#B T"]) -> Float[Array, "#B H S T"]:
        """Bias from the positions of queries and keys."""
        axes = nn.with_logical_partitioning(self.kernel_init, ("positions", "heads"))
        table = self.param("table", axes, (self.num_buckets, self.num_heads))
        relative = key[:, None, :] - query[:, :, None]
        bucket = relative_bucket(relative, self.bidirectional, self.num_buckets, self.max_distance)
        return jnp.moveaxis(table[bucket], -1, 1)
