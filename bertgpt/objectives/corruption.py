"""Corruption of texts for masked language modelling, as pure functions of (key, ids).

Three steps:

1. `masking_spans` divides every document into masking spans: runs of tokens that are masked as a whole, such as the
   subwords of a word.
2. `choose_positions` takes the spans of a document in random order until the document's budget of tokens is used.
3. `corrupt` replaces each chosen token with [MASK] or a random token, or leaves it as it is.

The noise belongs to positions: what is sampled for a document depends on the key and on the document's position in the
sequence, not on the rest of the sequence.

A single key samples for the whole batch, and gives the same numbers however the batch is split over devices. With an
array of keys, one for each sequence, every sequence depends on its own key alone.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from bertgpt.objectives.core import count_by_document, is_ordinary
from bertgpt.types import Vocab

Unit = Literal["token", "word", "ngram", "span"]
SPAN_STOP, SPAN_MAX = 0.2, 10  # SpanBERT (Joshi et al. 2020 §3.1): lengths in words ~ Geometric(0.2), at most 10
LAST = np.uint32(2**32 - 1)


# -- noise ------------------------------------------------------------------------------------------------------------


def sample_rows(
    sampler: Callable[[Key[Array, ""], tuple[int, ...]], Array], key: Key[Array, "*rows"], shape: tuple[int, int]
) -> Array:
    """sampler(key, shape), such as `jax.random.uniform`; with a key per sequence, each sequence uses its own."""
    if not key.ndim:
        return sampler(key, shape)
    return jax.vmap(lambda one: sampler(one, shape[1:]))(key)


def split_key(key: Key[Array, "*rows"]) -> tuple[Key[Array, "*rows"], Key[Array, "*rows"]]:
    """Splits each key into two."""
    keys = jax.random.split(key) if not key.ndim else jax.vmap(jax.random.split, out_axes=1)(key)
    return keys[0], keys[1]


def static_keys(row: Int[Array, " B"], epoch: Int[Array, " B"], count: int) -> Key[Array, " B"]:
    """A key for each sequence, which cycles through `count` values, one per epoch, whatever the step and the seed."""

    def key_of(row: Int[Array, ""], masking: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), masking)

    return jax.vmap(key_of)(row, epoch % count)


# -- masking spans ----------------------------------------------------------------------------------------------------


def masking_spans(
    key: Key[Array, "*rows"],
    ids: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    vocab: Vocab,
    unit: Unit,
    max_ngram: int,
) -> Int[Array, "B S"] | None:
    """Divides documents into masking spans.

    With unit "token" these are single tokens; with "word" a subword and the subwords of vocab.continuation that
    directly follow it; with "ngram" and "span" consecutive words. Their number is sampled independently for each span,
    from the start of the document and again after each special token inside it, so that no span contains a special
    token or crosses a document boundary. A uniformly chosen span therefore has exactly the intended distribution of
    lengths (ngram: 1 … max_ngram words with p(n) ∝ 1/n, Lan et al. 2020; span: SpanBERT's), except where the end
    truncates it.

    Args:
      key: a key for the batch, or one for each sequence.
      ids: token ids.
      segment_ids: document of each token, 0 for padding.
      vocab: special tokens and subwords that continue a word.
      unit: kind of span.
      max_ngram: the longest n-gram, in words.

    Returns:
      For each ordinary token the position of the first token of its span; None for unit="token".
    """
    if unit == "token":
        return None
    ordinary = is_ordinary(ids, segment_ids, vocab)
    before = jnp.pad(ordinary[:, :-1], ((0, 0), (1, 0)))
    same = segment_ids == jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    opens = ordinary & ~(before & same)  # first token of a run of ordinary tokens
    continues = jnp.zeros(vocab.size, bool).at[jnp.asarray(vocab.continuation, jnp.int32)].set(True)
    starts = opens | (ordinary & ~continues[ids])
    if unit != "word":
        lengths = sample_lengths(key, ids.shape, length_distribution(unit, max_ngram))
        starts = group_words(opens, starts, lengths)
    return running_max(jnp.where(starts, jnp.arange(ids.shape[1], dtype=jnp.int32), 0))


def length_distribution(unit: Unit, max_ngram: int) -> tuple[float, ...]:
    """Probability of a span of 1, 2, … words."""
    if unit == "span":
        # Renormalised over 1 … 10 rather than clipped to 10: this gives the paper's mean of 3.8, clipping 4.5.
        shares = [SPAN_STOP * (1.0 - SPAN_STOP) ** n for n in range(SPAN_MAX)]
    else:
        shares = [1.0 / n for n in range(1, (max_ngram if unit == "ngram" else 1) + 1)]
    return tuple(share / sum(shares) for share in shares)


def sample_lengths(
    key: Key[Array, "*rows"], shape: tuple[int, int], distribution: tuple[float, ...]
) -> Int[Array, "B S"]:
    """Samples a number of words for each position."""
    uniforms = sample_rows(jax.random.uniform, key, shape)
    bounds = [sum(distribution[:n]) for n in range(1, len(distribution))]
    return 1 + sum(((uniforms >= bound).astype(jnp.int32) for bound in bounds), jnp.zeros(shape, jnp.int32))


def group_words(
    opens: Bool[Array, "B S"], starts: Bool[Array, "B S"], lengths: Int[Array, "B S"]
) -> Bool[Array, "B S"]:
    """Marks the first token of each group of words.

    The first group of a run has the number of words that `lengths` holds at the run's first word, the second group that
    at the second word, and so on. This needs no loop, because the start of group k is a sum of lengths.
    """
    word = running_sum(starts) - 1
    own = jnp.where(starts, lengths, 0)
    total = running_sum(own) - own  # of the sequence's words so far
    # The word with which group k of a run begins, for k = number of the word, is total − shift, where shift is total −
    # word at the start of the run. total − word never decreases, so that shift is its running maximum there.
    shift = running_max(jnp.where(opens, total - word, 0))
    # Groups past the end of their run would begin inside later runs. Some of their run's lengths exceed 1, so that the
    # shift of later runs is higher: the maximum drops them.
    marks = jax.vmap(lambda at, value: jnp.zeros(at.shape, jnp.int32).at[at].max(value, mode="drop"))(
        jnp.where(starts, total - shift, starts.shape[1]), shift + 1
    )
    return starts & (jnp.take_along_axis(marks, jnp.maximum(word, 0), axis=1) == shift + 1)


def running_sum(x: Shaped[Array, "B S"]) -> Int[Array, "B S"]:
    """Running sum of each row."""
    return _running(jnp.add, x.astype(jnp.int32), 0)


def running_max(x: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Running maximum of each row."""
    return _running(jnp.maximum, x, jnp.iinfo(x.dtype).min)


def _running(combine: Callable[[Array, Array], Array], x: Int[Array, "B S"], identity: int) -> Int[Array, "B S"]:
    """Scans each row by doubling (Hillis & Steele 1986): after k passes, element i combines the last 2^k ones.

    On CPUs twice as fast as jnp.cumsum and seven times as fast as jax.lax.cummax, because each pass reads consecutive
    memory. Fused, the passes would evaluate `x` again for each of their terms: hence the barriers, one for two passes.
    """
    shift = 1
    while shift < x.shape[1]:
        x = jax.lax.optimization_barrier(x) if shift.bit_length() % 2 else x
        x = combine(x, jnp.pad(x[:, :-shift], ((0, 0), (shift, 0)), constant_values=identity))
        shift *= 2
    return jax.lax.optimization_barrier(x)


# -- choice of positions ----------------------------------------------------------------------------------------------


def choose_positions(
    key: Key[Array, "*rows"],
    ordinary: Bool[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    rate: float,
    count: int,
    spans: Int[Array, "B S"] | None = None,
) -> tuple[Int[Array, "B M"], Float[Array, "B M"]]:
    """Chooses the positions to predict.

    Each document has a budget of its own, max(1, round(n · rate)) of its n ordinary tokens, as in BERT's data recipe
    for each sequence. Its spans are taken in random order until the budget is used. The span that exceeds the budget is
    taken with probability (budget − used) / length, so that the expected number of predicted tokens equals the budget.
    The first span is always taken, so that every document contributes; if it is longer than the budget, the document
    exceeds its budget.

    A sequence that needs more than `count` slots drops whole spans at random, first those that are not the first of
    their document. A span is truncated only if it has more tokens than there are slots.

    Implementation: one sort of one number per token. Each document owns an interval of the 32-bit integers whose length
    is proportional to its ordinary tokens, and each token's number is sampled from the interval of its document, the
    same number for all tokens of a span. In sorted order the number at index budget − 1 of an interval belongs to the
    span that reaches the budget. Two spans have the same number there once in 2^32/S documents. They then count as one
    span that reaches the budget, so that no position is favoured; of two single tokens both are taken, one more than
    the budget.

    Args:
      key: a key for the batch, or one for each sequence.
      ordinary: tokens that may be predicted.
      segment_ids: document of each token, 0 for padding.
      rate: fraction of each document's ordinary tokens to predict.
      count: slots per sequence, M.
      spans: position of the first token of each token's span, from `masking_spans`; None: single tokens.

    Returns:
      Positions of the slots, in ascending order, and their weights: 1 for used slots, which come first, else 0.
    """
    order_key, coin_key = split_key(key)
    length = ordinary.shape[1]
    noise = sample_rows(functools.partial(jax.random.bits, dtype=jnp.uint32), order_key, ordinary.shape)
    if spans is not None:
        noise = jnp.take_along_axis(noise, spans, axis=1)
    sizes = count_by_document(ordinary, segment_ids)
    firsts = running_sum(sizes) - sizes
    numbers = jnp.where(ordinary, in_interval(noise, *of_tokens((firsts, sizes), segment_ids)), LAST)
    ranked = jnp.sort(numbers, axis=1)

    def number_at(index: Int[Array, "B D"]) -> Array:
        """The number at an index of each document, for each of its tokens."""
        found = jnp.take_along_axis(ranked, jnp.minimum(index, length - 1), axis=1)
        return jnp.take_along_axis(found, segment_ids, axis=1)

    budget = jnp.maximum(1, jnp.round(sizes * rate).astype(jnp.int32))
    reaching = number_at(firsts + budget - 1)
    chosen = ordinary & (numbers <= reaching)
    if spans is not None:
        last = ordinary & (numbers == reaching)
        size, used = count_two(last, chosen & ~last, segment_ids)
        probability = jnp.where(used == 0, 1.0, (budget - used) / jnp.maximum(size, 1))
        coin = jnp.take_along_axis(sample_rows(jax.random.uniform, coin_key, ordinary.shape), spans, axis=1)
        chosen = chosen & (~last | (coin < jnp.take_along_axis(probability, segment_ids, axis=1)))
    if count < length:
        chosen = jax.lax.cond(
            jnp.any(jnp.sum(chosen, axis=1) > count),
            lambda: drop_excess(chosen, numbers == number_at(firsts), noise, count),
            lambda: chosen,
        )
    slot = running_sum(chosen)
    positions = jax.vmap(
        lambda to: jnp.zeros(count, jnp.int32).at[to].set(jnp.arange(length, dtype=jnp.int32), mode="drop")
    )(jnp.where(chosen, slot - 1, count))
    return positions, (jnp.arange(count) < slot[:, -1:]).astype(jnp.float32)


def count_two(
    one: Bool[Array, "B S"], other: Bool[Array, "B S"], segment_ids: Int[Array, "B S"]
) -> tuple[Int[Array, "B D"], Int[Array, "B D"]]:
    """`count_by_document` of two kinds of tokens, below 2^15 per document, with a single scatter."""
    zeros = jnp.zeros(one.shape[1] + 1, jnp.int32)
    both = jax.vmap(lambda at, value: zeros.at[at].add(value))(segment_ids, one.astype(jnp.int32) << 16 | other)
    return both >> 16, both & 0xFFFF


def of_tokens(
    pair: tuple[Int[Array, "B D"], Int[Array, "B D"]], segment_ids: Int[Array, "B S"]
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Two numbers below 2^15 of each document, looked up for each of its tokens with a single gather."""
    both = jnp.take_along_axis(pair[0] << 16 | pair[1], segment_ids, axis=1)
    return both >> 16, both & 0xFFFF


def in_interval(noise: Array, first: Int[Array, "B S"], size: Int[Array, "B S"]) -> Array:
    """Maps noise, uniform in [0, 2^32), to [first · 2^k, (first + size) · 2^k), for the largest possible k."""
    bits = max(1, (noise.shape[1] - 1).bit_length())
    size, first = size.astype(jnp.uint32), first.astype(jnp.uint32)
    # (noise · size) >> bits, where the product has 32 + bits bits, from the two halves of the noise.
    scaled = (noise >> bits) * size + (((noise & (2**bits - 1)) * size) >> bits)
    return (first << (32 - bits)) + scaled


def drop_excess(chosen: Bool[Array, "B S"], first: Bool[Array, "B S"], noise: Array, count: int) -> Bool[Array, "B S"]:
    """Keeps at most `count` tokens per sequence, or one longer span: documents' first spans, then others by noise."""
    rank = jnp.where(chosen, jnp.where(first, 0, 2**30).astype(jnp.uint32) + (noise >> 2), LAST)

    def with_bit(i: Int[Array, ""], limit: Array) -> Array:
        """Sets a bit, from the highest, if no more than `count` ranks are below the limit then."""
        higher = limit | (jnp.uint32(2**31) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(rank < higher, axis=1, keepdims=True, dtype=jnp.int32) <= count, higher, limit)

    # Bisection: on CPUs half the time of a sort.
    limit = jax.lax.fori_loop(0, 32, with_bit, jnp.zeros((rank.shape[0], 1), jnp.uint32))
    nothing = ~jnp.any(rank < limit, axis=1, keepdims=True)
    return chosen & (rank < limit + nothing)


# -- replacement of tokens --------------------------------------------------------------------------------------------


def corrupt(
    key: Key[Array, "*rows"],
    tokens: Int[Array, "B M"],
    vocab: Vocab,
    mask_token_rate: float,
    random_token_rate: float,
    shared: Int[Array, "B M"] | None = None,
) -> Int[Array, "B M"]:
    """Replaces tokens with [MASK] or a random ordinary token, or keeps them (BERT: 80 %, 10 %, 10 %).

    The choice between the three is made per token, also for BERT's whole words and ALBERT's n-grams. With `shared`, all
    slots with the same number there share one choice (SpanBERT's spans). Random tokens are sampled independently.

    Args:
      key: a key for the batch, or one for each sequence.
      tokens: the tokens at the predicted positions.
      vocab: gives [MASK] and the special tokens, which never replace a token.
      mask_token_rate: probability of [MASK].
      random_token_rate: probability of a random token.
      shared: for each slot the slot whose choice it shares; None: each its own.

    Returns:
      The tokens that the model sees.
    """
    kind_key, token_key = split_key(key)
    kind = sample_rows(jax.random.uniform, kind_key, tokens.shape)
    if shared is not None:
        kind = jnp.take_along_axis(kind, shared, axis=1)
    # Sample among the ordinary ids only: number them 0 … n−1, then skip the special ids in ascending order.
    special = sorted(set(vocab.special))
    sampler = functools.partial(jax.random.randint, minval=0, maxval=vocab.size - len(special), dtype=tokens.dtype)
    replacement = sample_rows(sampler, token_key, tokens.shape)
    for special_id in special:
        replacement = replacement + (replacement >= special_id)
    return jnp.where(
        kind < mask_token_rate, vocab.mask, jnp.where(kind < mask_token_rate + random_token_rate, replacement, tokens)
    )


def first_slots(spans: Int[Array, "B S"], positions: Int[Array, "B M"]) -> Int[Array, "B M"]:
    """For each slot the first slot of its span, whose tokens are adjacent in the result of `choose_positions`."""
    span = jnp.take_along_axis(spans, positions, axis=1)
    opens = span != jnp.pad(span[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    slot = jnp.broadcast_to(jnp.arange(span.shape[1], dtype=jnp.int32), span.shape)
    return running_max(jnp.where(opens, slot, 0))


def scatter_tokens(
    ids: Int[Array, "B S"], positions: Int[Array, "B M"], tokens: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> Int[Array, "B S"]:
    """Puts `tokens` at those `positions` whose weight is 1, which are distinct within a sequence."""
    at = jnp.where(weights > 0, positions, ids.shape[1])  # past the end: dropped
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(ids, at, tokens)
