"""Attention in blocks: scores of all pairs of positions never exist at once, in the forward or the backward pass.

Softmax over the keys is computed block by block, with the maximum and the sum so far (Milakov & Gimelshein 2018,
"Online normalizer calculation for softmax"; Dao et al. 2022 §3.1). The backward pass computes the weights again from
queries, keys, maxima and sums: five products of S · T · K against four.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.layers.dropout import kept
from bertgpt.layers.masks import Mask, segment_mask
from bertgpt.layers.position import RelativePositions, bias_of
from bertgpt.sharding import splits

BLOCK = 512
"""queries, and keys, of a block at most: then its scores take 1 MB a head in float32"""


class Queries(NamedTuple):
    """Queries in blocks of C; the first axis of every field counts the blocks."""

    number: Int[Array, " N"]
    index: Int[Array, "N C"]
    query: Float[Array, "N B H C K"]
    segments: Int[Array, "N B C"] | None
    positions: Int[Array, "N _ C"] | None


class Keys(NamedTuple):
    """Keys and values in blocks of C; the first axis of every field counts the blocks."""

    number: Int[Array, " M"]
    index: Int[Array, "M C"]
    key: Float[Array, "M B H C K"]
    value: Float[Array, "M B H C K"]
    segments: Int[Array, "M B C"] | None
    bidirectional: Bool[Array, "M B C"] | None
    positions: Int[Array, "M _ C"] | None


class Setting(NamedTuple):
    """What does not change from block to block, and is no array."""

    queries: int
    """number of queries"""
    length: int
    """number of keys"""
    causal: bool
    window: int | None
    bias: tuple[bool, int] | None
    """of `RelativePositions`: bidirectional, max_distance"""
    dropout_rate: float


def chunked_attention(
    query: Float[Array, "B H S K"],
    key: Float[Array, "B H T K"],
    value: Float[Array, "B H T K"],
    mask: Mask,
    bias: RelativePositions | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    block: int = BLOCK,
) -> Float[Array, "B H S K"]:
    """softmax(QKᵀ + bias) V, as `attention.attend`, in blocks.

    Dropout drops the weights that `attend` drops, for the decision depends on the key and the weight's place only.

    Args:
      query: queries; divide them by √d_k for scaled products.
      key: keys.
      value: values.
      mask: which keys a query may attend to.
      bias: relative bias, if any.
      dropout_rate: of the attention weights.
      dropout_key: None turns dropout off.
      block: queries and keys of a block, at most.
    """
    rate = dropout_rate if dropout_key is not None else 0.0
    distances = None if bias is None else (bias.bidirectional, bias.max_distance)
    setting = Setting(query.shape[2], key.shape[2], mask.causal, mask.window, distances, rate)
    # Sequences that are split over devices stay so: every device has all of its queries in one block.
    height = query.shape[2] if splits("sequence") else block
    sizes = block_sizes(query.shape[2], height), block_sizes(key.shape[2], block)
    positions = (None, None) if bias is None else (bias.query, bias.key)
    rules = mask.query_segments, mask.key_segments, mask.bidirectional, *positions
    table = None if bias is None else bias.table
    return _chunked(query, key, value, table, rules, dropout_key if rate else None, setting, sizes)


def block_sizes(length: int, most: int) -> tuple[int, int]:
    """(number of blocks, size of each) for so many positions; the size is a multiple of 8 if there are several."""
    number = -(-length // most)
    return (1, length) if number == 1 else (number, -(-length // number // 8) * 8)


def in_blocks(x: Array | None, axis: int, sizes: tuple[int, int], fill: float = 0) -> Array | None:
    """Splits an axis into blocks, which become the first axis; the last one is filled up."""
    if x is None:
        return None
    number, size = sizes
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, number * size - x.shape[axis])
    x = jnp.pad(x, padding, constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], number, size, *x.shape[axis + 1 :]), axis, 0)


def joined(x: Float[Array, "N B H C K"], length: int) -> Float[Array, "B H S K"]:
    """The inverse of `in_blocks` for queries, keys and values."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :length]


def _split(query: Array, key: Array, value: Array, rules: tuple, sizes: tuple) -> tuple[Queries, Keys]:
    query_segments, key_segments, bidirectional, query_positions, key_positions = rules
    (rows, height), (columns, width) = sizes
    queries = Queries(
        jnp.arange(rows),
        jnp.arange(rows * height).reshape(rows, height),
        in_blocks(query, 2, sizes[0]),
        in_blocks(query_segments, 1, sizes[0]),
        in_blocks(query_positions, 1, sizes[0]),
    )
    keys = Keys(
        jnp.arange(columns),
        jnp.arange(columns * width).reshape(columns, width),
        in_blocks(key, 2, sizes[1]),
        in_blocks(value, 2, sizes[1]),
        in_blocks(key_segments, 1, sizes[1]),
        in_blocks(bidirectional, 1, sizes[1]),
        in_blocks(key_positions, 1, sizes[1]),
    )
    return queries, keys


def _relative_bias(table: Array, q: Queries, k: Keys, setting: Setting) -> Float[Array, "#B H C D"]:
    return bias_of(table, q.positions, k.positions, *setting.bias)


def _scores(
    table: Array | None, q: Queries, k: Keys, setting: Setting
) -> tuple[Float[Array, "B H C D"], Bool[Array, "#B 1 C D"]]:
    """Scores of a block in float32 or better, the smallest number where masked, −∞ beyond the last key; the mask."""
    scores = _product("bhsk,bhtk->bhst", q.query, k.key)
    if table is not None:
        scores = scores + _relative_bias(table, q, k, setting)
    rows, columns = q.index[:, None], k.index[None]
    mask = jnp.broadcast_to(columns < setting.length, (1, 1, rows.size, columns.size))
    inside = mask
    if setting.causal:
        before = (columns <= rows)[None, None]
        mask = mask & (before if k.bidirectional is None else before | k.bidirectional[:, None, None])
    if q.segments is not None:
        mask = mask & segment_mask(q.segments, k.segments)
    if setting.window is not None:
        mask = mask & (rows - columns < setting.window)
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.where(inside, scores, -jnp.inf), mask


def _product(spec: str, a: Array, b: Array) -> Array:
    """A product, added up in float32 or better."""
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _factors(key: Key[Array, ""] | None, q: Queries, k: Keys, scores: Array, setting: Setting) -> Array | float:
    """Factors of the weights of a block: 0 where dropped, 1 / (1 − rate) elsewhere; 1 without dropout."""
    if key is None:
        return 1.0
    row, head = (jax.lax.broadcasted_iota(jnp.uint32, scores.shape, axis) for axis in (0, 1))
    queries, keys = q.index[:, None].astype(jnp.uint32), k.index.astype(jnp.uint32)
    column = (head * np.uint32(setting.queries) + queries) * np.uint32(setting.length) + keys  # as `dropout.places`
    rate = setting.dropout_rate
    return jnp.where(kept(key, row, column, rate), np.asarray(1 / (1 - rate), scores.dtype), 0)


def _if_needed(
    q: Queries, k: Keys, setting: Setting, update: Callable[[], tuple], skipped: Callable[[], tuple]
) -> tuple:
    """`update()`, or `skipped()` if no query of the block may attend to any of its keys."""
    needed = True
    if setting.causal and k.bidirectional is None:
        needed = k.index[0] <= q.index[-1]
    if setting.window is not None:
        needed &= q.index[0] - k.index[-1] < setting.window
    return update() if needed is True else jax.lax.cond(needed, update, skipped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _chunked(
    query: Array,
    key: Array,
    value: Array,
    table: Array | None,
    rules: tuple,
    dropout_key: Key[Array, ""] | None,
    setting: Setting,
    sizes: tuple,
) -> Array:
    return _forward(query, key, value, table, rules, dropout_key, setting, sizes)[0]


def _forward(
    query: Array,
    key: Array,
    value: Array,
    table: Array | None,
    rules: tuple,
    dropout_key: Key[Array, ""] | None,
    setting: Setting,
    sizes: tuple,
) -> tuple[Array, tuple]:
    queries, keys = _split(query, key, value, rules, sizes)
    dtype = jnp.promote_types(query.dtype, jnp.float32)

    def row(q: Queries) -> tuple[Array, Array, Array]:
        def step(carry: tuple[Array, Array, Array], k: Keys) -> tuple[tuple[Array, Array, Array], None]:
            def update() -> tuple[Array, Array, Array]:
                out, highest, total = carry
                scores, _ = _scores(table, q, k, setting)
                new = jnp.maximum(highest, jnp.max(scores, axis=-1))
                weights, shrink = jnp.exp(scores - new[..., None]), jnp.exp(highest - new)
                thinned = (weights * _factors(dropout_key, q, k, scores, setting)).astype(value.dtype)
                out = out * shrink[..., None] + _product("bhst,bhtk->bhsk", thinned, k.value)
                return out, new, total * shrink + jnp.sum(weights, axis=-1)

            return _if_needed(q, k, setting, update, lambda: carry), None

        shape = q.query.shape
        none = jnp.zeros(shape, dtype), jnp.full(shape[:-1], jnp.finfo(dtype).min), jnp.zeros(shape[:-1], dtype)
        (out, highest, total), _ = jax.lax.scan(step, none, keys)
        return (out / total[..., None]).astype(value.dtype), highest, total

    out, highest, total = jax.lax.map(row, queries)
    out, highest, total = (
        checkpoint_name(x, "context") for x in (joined(out, query.shape[2]), highest, total)
    )  # a policy that keeps them spares the backward pass all of this
    return out, (query, key, value, table, rules, dropout_key, out, highest, total)


def _backward(setting: Setting, sizes: tuple, residuals: tuple, gradient: Array) -> tuple:
    query, key, value, table, rules, dropout_key, out, highest, total = residuals
    queries, keys = _split(query, key, value, rules, sizes)
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    along = jnp.sum(gradient.astype(dtype) * out.astype(dtype), axis=-1)
    rows = queries, in_blocks(gradient, 2, sizes[0]), in_blocks(along, 2, sizes[0]), highest, total

    def column(carry: tuple[Array, Array | None], k: Keys) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
        d_query, d_table = carry

        def step(carry: tuple, row: tuple) -> tuple[tuple, Array]:
            q, g, along, highest, total = row

            def update() -> tuple[tuple, Array]:
                d_key, d_value, d_table = carry
                scores, mask = _scores(table, q, k, setting)
                weights = jnp.exp(scores - highest[..., None]) / total[..., None]
                factors = _factors(dropout_key, q, k, scores, setting)
                d_value = d_value + _product("bhst,bhsk->bhtk", (weights * factors).astype(g.dtype), g)
                d_scores = weights * (_product("bhsk,bhtk->bhst", g, k.value) * factors - along[..., None])
                d_scores = jnp.where(mask, d_scores, 0)
                if table is not None:
                    bias, pull = jax.vjp(lambda t: _relative_bias(t, q, k, setting), table)
                    shared = jnp.sum(d_scores, axis=0, keepdims=True) if bias.shape[0] == 1 else d_scores
                    d_table = d_table + pull(shared.astype(bias.dtype))[0]
                d_scores = d_scores.astype(query.dtype)
                d_key = d_key + _product("bhst,bhsk->bhtk", d_scores, q.query)
                return (d_key, d_value, d_table), _product("bhst,bhtk->bhsk", d_scores, k.key)

            return _if_needed(q, k, setting, update, lambda: (carry, jnp.zeros(q.query.shape, dtype)))

        zeros = jnp.zeros(k.key.shape, dtype)
        (d_key, d_value, d_table), d_rows = jax.lax.scan(step, (zeros, zeros, d_table), rows)
        return (d_query + d_rows, d_table), (d_key, d_value)

    start = jnp.zeros(queries.query.shape, dtype), None if table is None else jnp.zeros_like(table)
    (d_query, d_table), (d_key, d_value) = jax.lax.scan(column, start, keys)
    return (
        joined(d_query, query.shape[2]).astype(query.dtype),
        joined(d_key, key.shape[2]).astype(key.dtype),
        joined(d_value, value.shape[2]).astype(value.dtype),
        d_table,
        jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), rules),
        None,
    )


_chunked.defvjp(_forward, _backward)
