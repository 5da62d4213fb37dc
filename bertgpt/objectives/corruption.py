"""Corruption: which positions are predicted and what the model sees there, as pure functions of (key, ids).

Every document is cut into units, runs of consecutive tokens (`cut_units`); its units are put in random order and taken
until the document's budget of tokens is used (`choose_positions`); then each chosen token shows [MASK], a random token
or itself (`corrupt`). Noise belongs to places: what is drawn for a document depends on the key and on where it lies,
not on what else the row holds.

Where a key is asked for, one key draws for the whole batch, the same numbers however the batch is split over devices;
an array of keys, one for each row, makes every row a function of its own key.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.objectives.core import count_by_document, is_ordinary
from bertgpt.types import Vocab

Unit = Literal["token", "word", "ngram", "span"]
SPAN_STOP, SPAN_MAX = 0.2, 10  # SpanBERT (Joshi et al. 2020 §3.1): lengths in words ~ Geometric(0.2), at most 10
LAST = np.uint32(2**32 - 1)


# -- noise ------------------------------------------------------------------------------------------------------------


def draw(sample: Callable[..., Array], key: Key[Array, "*rows"], shape: tuple[int, int], **settings: Any) -> Array:
    """sample(key, shape), for instance `jax.random.uniform`; with a key for each row, each row from its own."""
    if not key.ndim:
        return sample(key, shape, **settings)
    return jax.vmap(lambda one: sample(one, shape[1:], **settings))(key)


def split_key(key: Key[Array, "*rows"]) -> tuple[Key[Array, "*rows"], Key[Array, "*rows"]]:
    """Two keys of each."""
    keys = jax.random.split(key) if not key.ndim else jax.vmap(jax.random.split, out_axes=1)(key)
    return keys[0], keys[1]


def static_keys(row: Int[Array, " B"], epoch: Int[Array, " B"], count: int) -> Key[Array, " B"]:
    """A key for each row that takes `count` values in turn, one in each epoch, whatever the step and the seed."""

    def of(row: Int[Array, ""], turn: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), turn)

    return jax.vmap(of)(row, epoch % count)


# -- units ------------------------------------------------------------------------------------------------------------


def cut_units(
    key: Key[Array, "*rows"],
    ids: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    vocab: Vocab,
    unit: Unit,
    max_ngram: int,
) -> Int[Array, "B S"] | None:
    """For each ordinary token, the place of the first token of its unit; None where each token is its own.

    word: a piece and the pieces of vocab.continuation right after it. ngram, span: consecutive
    words, grouped by independent lengths from the document's start on and again from each special token inside it, so
    that units hold neither. A uniformly chosen unit therefore has exactly the wanted length distribution (`ngram`:
    1 … max_ngram words, p(n) ∝ 1/n, Lan et al. 2020; `span`: SpanBERT's), but for the cut at the end.
    """
    if unit == "token":
        return None
    ordinary = is_ordinary(ids, segment_ids, vocab)
    before = jnp.pad(ordinary[:, :-1], ((0, 0), (1, 0)))
    same = segment_ids == jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    opens = ordinary & ~(before & same)  # first of a run of ordinary tokens
    continues = jnp.zeros(vocab.size, bool).at[jnp.asarray(vocab.continuation, jnp.int32)].set(True)
    starts = opens | (ordinary & ~continues[ids])
    if unit != "word":
        lengths = draw_lengths(key, ids.shape, length_distribution(unit, max_ngram))
        starts = group_words(opens, starts, lengths)
    return latest(jnp.where(starts, jnp.arange(ids.shape[1], dtype=jnp.int32), 0))


def length_distribution(unit: Unit, max_ngram: int) -> tuple[float, ...]:
    """Probability of 1, 2, … words in a unit."""
    if unit == "span":
        # Renormalised over 1 … 10, not clipped to 10: only so is the mean the paper's 3.8 (clipped, it would be 4.5).
        shares = [SPAN_STOP * (1.0 - SPAN_STOP) ** n for n in range(SPAN_MAX)]
    else:
        shares = [1.0 / n for n in range(1, (max_ngram if unit == "ngram" else 1) + 1)]
    return tuple(share / sum(shares) for share in shares)


def draw_lengths(
    key: Key[Array, "*rows"], shape: tuple[int, int], distribution: tuple[float, ...]
) -> Int[Array, "B S"]:
    """A number of words for each place."""
    uniforms = draw(jax.random.uniform, key, shape)
    bounds = [sum(distribution[:n]) for n in range(1, len(distribution))]
    return 1 + sum(((uniforms >= bound).astype(jnp.int32) for bound in bounds), jnp.zeros(shape, jnp.int32))


def group_words(
    opens: Bool[Array, "B S"], starts: Bool[Array, "B S"], lengths: Int[Array, "B S"]
) -> Bool[Array, "B S"]:
    """Starts of groups of words: the first group of a run has as many words as `lengths` says at the run's first word,
    the second as many as it says at the second word, and so on. No loop: where group k begins is a sum of lengths.
    """
    run = jnp.cumsum(opens, axis=1, dtype=jnp.int32)
    word = jnp.cumsum(starts, axis=1, dtype=jnp.int32) - 1
    own = jnp.where(starts, lengths, 0)
    total = jnp.cumsum(own, axis=1, dtype=jnp.int32) - own  # of the row's words so far
    # The word with which group k of a run begins, k counted by the words themselves. total − word never falls, so that
    # its value at the start of a run is the largest so far.
    begins = total - latest(jnp.where(opens, total - word, 0))
    # Groups past the end of their run would begin inside later ones, whose own numbers are higher.
    marks = jax.vmap(lambda at, value: jnp.zeros(at.shape, jnp.int32).at[at].max(value, mode="drop"))(
        jnp.where(starts, begins, starts.shape[1]), run
    )
    return starts & (jnp.take_along_axis(marks, jnp.maximum(word, 0), axis=1) == run)


def latest(x: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """The largest so far in each row; on CPUs four times as fast as jax.lax.cummax."""
    return jax.lax.associative_scan(jnp.maximum, x, axis=1)


# -- choice -----------------------------------------------------------------------------------------------------------


def choose_positions(
    key: Key[Array, "*rows"],
    ordinary: Bool[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    rate: float,
    count: int,
    units: Int[Array, "B S"] | None = None,
) -> tuple[Int[Array, "B M"], Float[Array, "B M"]]:
    """Chooses positions to predict, `count` slots in each row, of which those with weight 1, the first ones, are real.

    Each document has its own budget, max(1, round(n · rate)) of its n ordinary tokens, as BERT's data recipe gives each
    sequence. Its units are taken in random order until the budget is used; the unit that crosses it is taken with
    probability (budget − used) / length, so that the expected number of predicted tokens is the budget. The first unit
    is always taken: every document has its share, which for a budget below the length of that unit is more.

    A row that wants more than `count` drops whole units at random, those that are not their document's first before any
    that is. A unit is cut only if it alone has more tokens than there are slots.

    One sort of one number per token: documents own stretches of the 32-bit line as long as they have ordinary tokens,
    and a token's number is drawn from its document's stretch, the same for all tokens of a unit. Sorted, the number at
    place budget − 1 of a stretch is that of the unit that reaches the budget. Two units have that very number once in
    2^32/S documents. They count as one that reaches the budget, so no place is favoured; of two single tokens both are
    taken, one more than the budget.

    Args:
      ordinary: tokens that may be predicted.
      units: place of the first token of each token's unit, as `cut_units` finds it; None: each token is a unit.
    """
    order_key, coin_key = split_key(key)
    length = ordinary.shape[1]
    noise = draw(jax.random.bits, order_key, ordinary.shape)
    if units is not None:
        noise = jnp.take_along_axis(noise, units, axis=1)
    sizes = count_by_document(ordinary, segment_ids)
    firsts = jnp.cumsum(sizes, axis=1, dtype=jnp.int32) - sizes
    numbers = jnp.where(ordinary, in_stretch(noise, *of_token((firsts, sizes), segment_ids)), LAST)
    ranked = jnp.sort(numbers, axis=1)

    def number_at(place: Int[Array, "B D"]) -> Array:
        """Of each document, for its tokens."""
        found = jnp.take_along_axis(ranked, jnp.minimum(place, length - 1), axis=1)
        return jnp.take_along_axis(found, segment_ids, axis=1)

    budget = jnp.maximum(1, jnp.round(sizes * rate).astype(jnp.int32))
    reaching = number_at(firsts + budget - 1)
    chosen = ordinary & (numbers <= reaching)
    if units is not None:
        last = ordinary & (numbers == reaching)
        size = count_by_document(last, segment_ids)
        used = count_by_document(chosen, segment_ids) - size
        probability = jnp.where(used == 0, 1.0, (budget - used) / jnp.maximum(size, 1))
        coin = jnp.take_along_axis(draw(jax.random.uniform, coin_key, ordinary.shape), units, axis=1)
        chosen = chosen & (~last | (coin < jnp.take_along_axis(probability, segment_ids, axis=1)))
    if count < length:
        chosen = jax.lax.cond(
            jnp.any(jnp.sum(chosen, axis=1) > count),
            lambda: drop_excess(chosen, numbers == number_at(firsts), noise, count),
            lambda: chosen,
        )
    slot = jnp.cumsum(chosen, axis=1, dtype=jnp.int32)
    positions = jax.vmap(
        lambda to: jnp.zeros(count, jnp.int32).at[to].set(jnp.arange(length, dtype=jnp.int32), mode="drop")
    )(jnp.where(chosen, slot - 1, count))
    return positions, (jnp.arange(count) < slot[:, -1:]).astype(jnp.float32)


def of_token(
    pair: tuple[Int[Array, "B D"], Int[Array, "B D"]], segment_ids: Int[Array, "B S"]
) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Two numbers of each document, below 2^15, for each of its tokens: one gather for both."""
    both = jnp.take_along_axis(pair[0] << 16 | pair[1], segment_ids, axis=1)
    return both >> 16, both & 0xFFFF


def in_stretch(noise: Array, first: Int[Array, "B S"], size: Int[Array, "B S"]) -> Array:
    """A number in [first · 2^k, (first + size) · 2^k), uniform if noise is in [0, 2^32); k is the largest that fits."""
    bits = max(1, (noise.shape[1] - 1).bit_length())
    size, first = size.astype(jnp.uint32), first.astype(jnp.uint32)
    # (noise · size) >> bits of a product of 32 + bits bits, from its halves.
    scaled = (noise >> bits) * size + (((noise & (2**bits - 1)) * size) >> bits)
    return (first << (32 - bits)) + scaled


def drop_excess(chosen: Bool[Array, "B S"], first: Bool[Array, "B S"], noise: Array, count: int) -> Bool[Array, "B S"]:
    """At most `count` chosen tokens in each row (more only of one unit): first units before others, then by noise."""
    rank = jnp.where(chosen, jnp.where(first, 0, 2**30).astype(jnp.uint32) + (noise >> 2), LAST)
    limit = jnp.sort(rank, axis=1)[:, count, None]
    nothing = ~jnp.any(rank < limit, axis=1, keepdims=True)
    return chosen & (rank < limit + nothing)


# -- what is shown ----------------------------------------------------------------------------------------------------


def corrupt(
    key: Key[Array, "*rows"],
    tokens: Int[Array, "B M"],
    vocab: Vocab,
    mask_token_rate: float,
    random_token_rate: float,
    shared: Int[Array, "B M"] | None = None,
) -> Int[Array, "B M"]:
    """What the model sees at predicted positions: [MASK], a random ordinary token, or the token itself (80/10/10).

    Which of the three is drawn for each token (BERT's whole words and ALBERT's n-grams too), or, of slots that have the
    same number in `shared`, once for all (SpanBERT's spans). Random tokens are drawn one by one.
    """
    kind_key, token_key = split_key(key)
    kind = draw(jax.random.uniform, kind_key, tokens.shape)
    if shared is not None:
        kind = jnp.take_along_axis(kind, shared, axis=1)
    # Draw among the ordinary ids only: number them 0 … n−1, then step over the special ids in ascending order.
    special = sorted(set(vocab.special))
    settings = dict(minval=0, maxval=vocab.size - len(special), dtype=tokens.dtype)
    drawn = draw(jax.random.randint, token_key, tokens.shape, **settings)
    for one in special:
        drawn = drawn + (drawn >= one)
    return jnp.where(
        kind < mask_token_rate, vocab.mask, jnp.where(kind < mask_token_rate + random_token_rate, drawn, tokens)
    )


def first_slots(units: Int[Array, "B S"], positions: Int[Array, "B M"]) -> Int[Array, "B M"]:
    """For each slot the first slot of its unit, whose tokens `choose_positions` puts side by side."""
    unit = jnp.take_along_axis(units, positions, axis=1)
    opens = unit != jnp.pad(unit[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    slot = jnp.broadcast_to(jnp.arange(unit.shape[1], dtype=jnp.int32), unit.shape)
    return latest(jnp.where(opens, slot, 0))


def scatter_tokens(
    ids: Int[Array, "B S"], positions: Int[Array, "B M"], tokens: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> Int[Array, "B S"]:
    """ids with `tokens` put at `positions` where weight is 1 (those of a row are distinct)."""
    at = jnp.where(weights > 0, positions, ids.shape[1])  # past the end: dropped
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(ids, at, tokens)
