"""Scaled dot-product attention over several heads (Vaswani et al. 2017 §3.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.layers.linear import Linear, dropout
from bertgpt.sharding import constrain


def segment_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B 1 S S"]:
    """True where query s may look at key t: the same document of a packed row. Segment 0 is padding.

    Padding looks at padding, so that no query is left without a key; nothing else ever looks at it.
    """
    return segment_ids[:, None, :, None] == segment_ids[:, None, None, :]


def attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H K"],
    mask: Bool[Array, "B 1 S T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B S H K"]:
    """Attention(Q, K, V) = softmax(QKᵀ / √d_k) V, each head on its own; softmax in float32."""
    # Heads before sequence: the batched products then have contiguous operands (twice as fast on CPU).
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhsk,bhtk->bhst", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout_key is not None and dropout_rate > 0.0:
        weights = dropout(dropout_key, weights, dropout_rate)
    return jnp.swapaxes(jnp.einsum("bhst,bhtk->bhsk", weights, value), 1, 2)


class MultiHeadAttention(nn.Module):
    """MultiHead(H) = Concat(head_1 … head_h) W^O, head_i = Attention(H W_i^Q, H W_i^K, H W_i^V)."""

    num_heads: int
    stddev: float
    dropout_rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Bool[Array, "B 1 S S"] | None) -> Float[Array, "B S D"]:
        d_model = x.shape[-1]
        heads = (self.num_heads, d_model // self.num_heads)

        def project(name: str) -> Float[Array, "B S H K"]:
            return Linear(heads, ("embed", "heads", "head_dim"), self.stddev, name=name)(x)

        use_dropout = self.dropout_rate > 0.0 and self.has_rng("dropout")
        mixed = attention(
            constrain(project("query"), ("batch", "seq", "heads", None)),
            constrain(project("key"), ("batch", "seq", "heads", None)),
            constrain(project("value"), ("batch", "seq", "heads", None)),
            mask,
            self.dropout_rate,
            self.make_rng("dropout") if use_dropout else None,
        )
        concat = mixed.reshape(*x.shape[:-1], d_model)
        return Linear((d_model,), ("heads", "embed"), self.stddev, name="out")(concat)
