"""Scaled dot-product attention over several heads (Vaswani et al. 2017 §3.2), its masks, and its cache for decoding."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.layers.linear import Init, Linear, dropout
from bertgpt.sharding import constrain


def segment_mask(
    query_segments: Int[Array, "B S"], key_segments: Int[Array, "B T"] | None = None
) -> Bool[Array, "B 1 S T"]:
    """True where query s may look at key t: the same document of a packed row. Segment 0 is padding.

    Padding looks at padding, so that no query is left without a key; nothing else ever looks at it.
    """
    key_segments = query_segments if key_segments is None else key_segments
    return query_segments[:, None, :, None] == key_segments[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 S S"]:
    """True where key t does not come after query s."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


class KeyValue(NamedTuple):
    """Keys and values of every position so far: one layer's cache, of which columns not yet written are unused."""

    key: Float[Array, "B H T K"]
    value: Float[Array, "B H T K"]

    def write(self, new: "KeyValue", index: Int[Array, ""] | int) -> "KeyValue":
        """The cache with `new` at columns index, index + 1, …"""
        return KeyValue(*(jax.lax.dynamic_update_slice_in_dim(a, b, index, 2) for a, b in zip(self, new, strict=True)))


def attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H K"],
    mask: Bool[Array, "#B 1 S T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B S H K"]:
    """Attention(Q, K, V) = softmax(QKᵀ / √d_k) V, each head on its own; softmax in float32."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(
        attend(query * query.shape[-1] ** -0.5, key, value, mask, None, dropout_rate, dropout_key), 1, 2
    )


def attend(
    query: Float[Array, "B H S K"],
    key: Float[Array, "B H T K"],
    value: Float[Array, "B H T K"],
    mask: Bool[Array, "#B 1 S T"] | None = None,
    bias: Float[Array, "#B H S T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B H S K"]:
    """softmax(QKᵀ + bias) V with heads before sequence, scores as they are: who wants 1/√d_k scales the query.

    Heads come first because the batched products then have contiguous operands (twice as fast on CPU).
    """
    scores = jnp.einsum("bhsk,bhtk->bhst", query, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout_key is not None and dropout_rate > 0.0:
        weights = dropout(dropout_key, weights, dropout_rate)
    return jnp.einsum("bhst,bhtk->bhsk", weights, value)


class MultiHeadAttention(nn.Module):
    """MultiHead(H) = Concat(head_1 … head_h) W^O, head_i = Attention(H W_i^Q, H W_i^K, H W_i^V)."""

    num_heads: int
    head_dim: int
    kernel_init: Init
    dropout_rate: float
    use_bias: bool = True
    scale: bool = True
    """divide scores by √head_dim; T5 does not, and starts with smaller queries instead"""
    query_init: Init | None = None
    """initialiser of W^Q (None: `kernel_init`)"""
    out_init: Init | None = None
    """initialiser of W^O (None: `kernel_init`)"""

    def setup(self):
        def project(init: Init) -> Linear:
            return Linear((self.num_heads, self.head_dim), ("embed", "heads", "head_dim"), init, self.use_bias)

        self.query = project(self.query_init or self.kernel_init)
        self.key = project(self.kernel_init)
        self.value = project(self.kernel_init)

    def key_value(self, x: Float[Array, "B T D"]) -> KeyValue:
        """Keys and values of these positions, all of them on each device that has some of the queries."""
        heads = (
            constrain(self._heads(project, x), ("batch", "heads", None, None)) for project in (self.key, self.value)
        )
        return KeyValue(*heads)

    def _heads(self, project: Linear, x: Float[Array, "B S D"]) -> Float[Array, "B H S K"]:
        projected = constrain(project(x), ("batch", "seq", "heads", None))
        return jnp.swapaxes(checkpoint_name(projected, "qkv"), 1, 2)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 S T"] | None = None,
        bias: Float[Array, "#B H S T"] | None = None,
        memory: KeyValue | None = None,
    ) -> Float[Array, "B S D"]:
        """Attends from x to x, or to `memory` where it is given: a cache, or `key_value` of another sequence."""
        query = self._heads(self.query, x)
        if self.scale:
            query = query * self.head_dim**-0.5
        key, value = self.key_value(x) if memory is None else memory
        use_dropout = self.dropout_rate > 0.0 and self.has_rng("dropout")
        dropout_key = self.make_rng("dropout") if use_dropout else None
        mixed = attend(query, key, value, mask, bias, self.dropout_rate, dropout_key)
        concat = jnp.swapaxes(mixed, 1, 2).reshape(*x.shape[:-1], self.num_heads * self.head_dim)
        concat = checkpoint_name(concat, "context")
        out = Linear((x.shape[-1],), ("heads", "embed"), self.out_init or self.kernel_init, self.use_bias, name="out")
        return out(concat)
