"""Relative positions (Raffel et al. 2020 §2.1)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bertgpt.layers.linear import Init
from bertgpt.ranges import Count


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


def bias_of(
    table: Float[Array, "buckets H"],
    query: Int[Array, "#B S"],
    key: Int[Array, "#B T"],
    bidirectional: bool,
    max_distance: int,
) -> Float[Array, "#B H S T"]:
    """The number of the bucket and head for each pair of positions."""
    relative = key[:, None, :] - query[:, :, None]
    return jnp.moveaxis(table[relative_bucket(relative, bidirectional, len(table), max_distance)], -1, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """A relative bias that is not computed yet: `bias_of` these."""

    table: Float[Array, "buckets H"]
    query: Int[Array, "#B S"]
    key: Int[Array, "#B T"]
    bidirectional: bool = dataclasses.field(metadata={"static": True})
    max_distance: Count = dataclasses.field(metadata={"static": True})

    def dense(self) -> Float[Array, "#B H S T"]:
        """The bias of all pairs."""
        return bias_of(self.table, self.query, self.key, self.bidirectional, self.max_distance)


class RelativeBias(nn.Module):
    """A learned number for each bucket and head, added to attention scores."""

    num_heads: int
    bidirectional: bool
    num_buckets: int
    max_distance: int
    kernel_init: Init

    @nn.compact
    def __call__(
        self, query: Int[Array, "#B S"], key: Int[Array, "#B T"], dense: bool = True
    ) -> Float[Array, "#B H S T"] | RelativePositions:
        """Bias from the positions of queries and keys: of all pairs or, unless `dense`, what it is computed from."""
        axes = nn.with_logical_partitioning(self.kernel_init, ("positions", "heads"))
        table = self.param("table", axes, (self.num_buckets, self.num_heads))
        if not dense:
            return RelativePositions(table, query, key, self.bidirectional, self.max_distance)
        return bias_of(table, query, key, self.bidirectional, self.max_distance)
