"""Scaled dot-product attention over several heads (Vaswani et al. 2017 §3.2), and its cache for decoding."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from bertgpt.layers import kernels
from bertgpt.layers.chunked import chunked_attention
from bertgpt.layers.dropout import dropout
from bertgpt.layers.linear import Init, Linear, apply_together
from bertgpt.layers.masks import Mask
from bertgpt.layers.position import RelativePositions
from bertgpt.sharding import constrain


class KeyValue(NamedTuple):
    """Keys and values of every position so far: one layer's cache, of which columns not yet written are unused."""

    key: Float[Array, "B H T K"]
    value: Float[Array, "B H T K"]

    def write(self, new: "KeyValue", index: Int[Array, ""] | Int[Array, " B"] | int) -> "KeyValue":
        """The cache with `new` at columns index, index + 1, …; `index` may differ between rows."""
        if jnp.ndim(index):
            write = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1))
        else:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
        return KeyValue(*(write(a, b, index) for a, b in zip(self, new, strict=True)))


def replace_row(cache: PyTree, row: Int[Array, ""], other: PyTree) -> PyTree:
    """The arrays of a cache with the only row of another's in place of a row, of which they may fill the first part."""

    def replace(x: Shaped[Array, "B ..."], new: Shaped[Array, "1 ..."]) -> Shaped[Array, "B ..."]:
        return jax.lax.dynamic_update_slice(x, new, (row, *[0] * (x.ndim - 1)))

    return jax.tree.map(replace, cache, other)


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
    mask: Mask | Bool[Array, "#B 1 S T"] | None = None,
    bias: RelativePositions | Float[Array, "#B H S T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B H S K"]:
    """softmax(QKᵀ + bias) V with heads before sequence, scores as they are: who wants 1/√d_k scales the query.

    Heads come first because the batched products then have contiguous operands (twice as fast on CPU). A `Mask` names
    the implementation; with an array or None all scores are computed at once.
    """
    if isinstance(mask, Mask):
        if mask.implementation == "chunked":
            return chunked_attention(query, key, value, mask, bias, dropout_rate, dropout_key)
        kernel = {"flash": kernels.flash, "cudnn": kernels.cudnn}[mask.implementation]
        return checkpoint_name(kernel(query, key, value, mask), "context")
    weights = attention_weights(query, key, mask, bias).astype(value.dtype)
    if dropout_key is not None and dropout_rate > 0.0:
        weights = dropout(dropout_key, weights, dropout_rate)
    return checkpoint_name(jnp.einsum("bhst,bhtk->bhsk", weights, value), "context")


def attention_weights(
    query: Float[Array, "B H S K"],
    key: Float[Array, "B H T K"],
    mask: Mask | Bool[Array, "#B 1 S T"] | None = None,
    bias: RelativePositions | Float[Array, "#B H S T"] | None = None,
) -> Float[Array, "B H S T"]:
    """softmax(QKᵀ + bias) over the keys, of all pairs at once whatever implementation a `Mask` names."""
    if isinstance(mask, Mask):
        mask = mask.dense(query.shape[2])
    if isinstance(bias, RelativePositions):
        bias = bias.dense()
    scores = jnp.einsum("bhsk,bhtk->bhst", query, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


class MultiHeadAttention(nn.Module):
    """MultiHead(H) = Concat(head_1 … head_h) W^O, head_i = Attention(H W_i^Q, H W_i^K, H W_i^V).

    A caller who asks for the auxiliary outputs "attention" (`Apply`) gets the weights [B, H, S, T] of every layer, as
    they are before dropout. Nobody else pays for them.
    """

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
        return KeyValue(*map(self._everywhere, self._heads(x, self.key, self.value)))

    def _heads(self, x: Float[Array, "B S D"], *layers: Linear) -> list[Float[Array, "B H S K"]]:
        projected = (constrain(heads, ("batch", "seq", "heads", None)) for heads in apply_together(x, layers))
        return [jnp.swapaxes(checkpoint_name(heads, "qkv"), 1, 2) for heads in projected]

    @staticmethod
    def _everywhere(heads: Float[Array, "B H T K"]) -> Float[Array, "B H T K"]:
        return constrain(heads, ("batch", "heads", None, None))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Mask | Bool[Array, "#B 1 S T"] | None = None,
        bias: RelativePositions | Float[Array, "#B H S T"] | None = None,
        memory: KeyValue | None = None,
    ) -> Float[Array, "B S D"]:
        """Attends from x to x, or to `memory` where it is given: a cache, or `key_value` of another sequence."""
        if memory is None:
            query, *own = self._heads(x, self.query, self.key, self.value)
            key, value = map(self._everywhere, own)
        else:
            (query,), (key, value) = self._heads(x, self.query), memory
        if not self.is_initializing():  # for whoever asks for the auxiliary outputs "projections", such as a student
            for name, array in (("queries", query), ("keys", key), ("values", value)):
                self.sow("projections", name, array)
        if self.scale:
            query = query * self.head_dim**-0.5
        use_dropout = self.dropout_rate > 0.0 and self.has_rng("dropout")
        dropout_key = self.make_rng("dropout") if use_dropout else None
        mixed = attend(query, key, value, mask, bias, self.dropout_rate, dropout_key)
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.sow("attention", "weights", attention_weights(query, key, mask, bias))
        concat = jnp.swapaxes(mixed, 1, 2).reshape(*x.shape[:-1], self.num_heads * self.head_dim)
        out = Linear((x.shape[-1],), ("heads", "embed"), self.out_init or self.kernel_init, self.use_bias, name="out")
        return out(concat)
