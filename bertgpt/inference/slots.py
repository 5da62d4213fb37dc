"""Decoding in slots: the rows of a batch hold prompts that come and go, each with its own position and settings.

A prompt is read alone (`read_prompt`), its cache replaces that of a free slot (`insert`), its first token is chosen
(`first_tokens`), and it is extended together with all others (`extend_slots`). The settings are arrays, so one compiled
program serves every request. The tokens are those of the loops in `decoding`, which compile the settings.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from bertgpt.inference.decoding import Decoding, mask_padding
from bertgpt.types import Apply, Params

MAX_STEPS = 8
"""new tokens of a slot in one call of `extend_slots`, at most"""
MAX_STOPS = 32
"""tokens that end a text, at most; more of them need the loops of `decoding`"""
MAX_ALTERNATIVES = 20
"""most probable tokens that are reported beside each chosen one, at most"""
NARROW = 1024
"""ranks among which top-k and top-p are looked for before the whole vocabulary is sorted"""


class Slots(NamedTuple):
    """What each of R slots is doing: `Decoding` as arrays, and how far it has come. On the host, small."""

    active: Bool[Array, " R"]
    """the slots in use; nothing is computed for the others"""
    token: Int[Array, " R"]
    """the last token"""
    made: Int[Array, " R"]
    """number of new tokens so far"""
    key: UInt32[Array, "R words"]
    """data of the random key of each prompt, `prompt_key`"""
    sample: Int[Array, " R"]
    """index among the outputs of a prompt"""
    max_new_tokens: Int[Array, " R"]
    min_new_tokens: Int[Array, " R"]
    temperature: Float[Array, " R"]
    top_k: Int[Array, " R"]
    """0: all tokens"""
    top_p: Float[Array, " R"]
    log_min_p: Float[Array, " R"]
    repetition_penalty: Float[Array, " R"]
    stops: Int[Array, "R stops"]
    """tokens that end a text, filled up with −1"""
    alternatives: Bool[Array, " R"]
    """whether the most probable tokens are asked for"""


class NewTokens(NamedTuple):
    """Up to T new tokens of each row; those of a row come first, and −1 follows."""

    tokens: Int[Array, "R T"]
    log_probs: Float[Array, "R T"]
    """log probability of each according to the unmodified logits"""
    top_ids: Int[Array, "R T top"]
    """the most probable tokens in place of each, most probable first, if a slot asks for them"""
    top_log_probs: Float[Array, "R T top"]


def one_slot(
    decoding: Decoding, key: np.ndarray, sample: int = 0, stops: tuple[int, ...] = (), alternatives: bool = False
) -> Slots:
    """A slot at the beginning of an output, on the host.

    Args:
      decoding: the settings.
      key: data of the prompt's random key.
      sample: index among the outputs of the prompt.
      stops: tokens that end the text, at most `MAX_STOPS`.
      alternatives: whether the most probable tokens are asked for.
    """
    return Slots(
        active=np.ones(1, bool),
        token=np.zeros(1, np.int32),
        made=np.zeros(1, np.int32),
        key=key[None],
        sample=np.asarray([sample], np.int32),
        max_new_tokens=np.asarray([decoding.max_new_tokens], np.int32),
        min_new_tokens=np.asarray([decoding.min_new_tokens], np.int32),
        temperature=np.asarray([decoding.temperature], np.float32),
        top_k=np.asarray([decoding.top_k or 0], np.int32),
        top_p=np.asarray([decoding.top_p], np.float32),
        log_min_p=np.asarray([np.log(decoding.min_p) if decoding.min_p else -np.inf], np.float32),
        repetition_penalty=np.asarray([decoding.repetition_penalty], np.float32),
        stops=np.asarray([[*stops, *[-1] * (MAX_STOPS - len(stops))]], np.int32),
        alternatives=np.asarray([alternatives]),
    )


def empty_slots(number: int) -> Slots:
    """Slots on the host, none of them in use."""
    slot = one_slot(Decoding(), np.asarray(jax.random.key_data(jax.random.key(0))))
    slots = Slots(*(np.repeat(field, number, axis=0) for field in slot))
    slots.active[:] = False
    return slots


# -- choosing tokens --------------------------------------------------------------------------------------------------


def choose_each(
    scores: Float[Array, "R V"], keys: Key[Array, " R"], slots: Slots, narrow: int = NARROW
) -> Int[Array, " R"]:
    """`decoding.choose` with settings of each row.

    Sorting the vocabulary costs more than a step of a small model, so it happens only if a row needs more than the
    `narrow` most probable tokens. With top-k, noise belongs to ranks, else to tokens, as in `choose`: the random
    numbers of the first k of V positions are those of k positions (`jax_threefry_partitionable`).
    """
    vocab_size, best = scores.shape[-1], jnp.argmax(scores, axis=-1).astype(jnp.int32)
    sampled, by_rank = slots.temperature > 0, (slots.top_k > 0) & (slots.top_k < vocab_size)
    limit = jnp.where(by_rank, slots.top_k, vocab_size)

    def sample() -> Int[Array, " R"]:
        scaled = scores / jnp.where(sampled, slots.temperature, 1.0)[:, None]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,), scores.dtype))(keys)
        floor = jnp.max(scaled, axis=-1) + slots.log_min_p

        def by_token(least: Float[Array, " R"]) -> Int[Array, " R"]:
            kept = jnp.where(scaled < least[:, None], -jnp.inf, scaled)
            return jnp.argmax(noise + kept, axis=-1).astype(jnp.int32)

        def ranked(width: int) -> tuple[Int[Array, " R"], Bool[Array, ""]]:
            """The tokens, and whether the first `width` ranks were enough."""
            descending, ids = jax.lax.top_k(scaled, width)
            descending = jnp.where(jnp.arange(width) < limit[:, None], descending, -jnp.inf)
            total = jnp.where(by_rank, jax.nn.logsumexp(descending, axis=-1), jax.nn.logsumexp(scaled, axis=-1))
            probability = jnp.exp(descending - total[:, None])
            reached = jnp.cumsum(probability, axis=-1)
            nucleus = jnp.where(reached - probability < slots.top_p[:, None], descending, jnp.inf)
            least = jnp.maximum(jnp.where(slots.top_p < 1, jnp.min(nucleus, axis=-1), -jnp.inf), floor)
            kept = jnp.where(descending < least[:, None], -jnp.inf, descending)
            rank = jnp.argmax(noise[:, :width] + kept, axis=-1)
            token = jnp.where(by_rank, jnp.take_along_axis(ids, rank[:, None], axis=1)[:, 0], by_token(least))
            enough = jnp.where(by_rank, limit <= width, (slots.top_p >= 1) | (reached[:, -1] >= slots.top_p))
            return token, jnp.all(enough | ~sampled)

        def first_narrow() -> Int[Array, " R"]:
            if narrow >= vocab_size:
                return ranked(vocab_size)[0]
            token, enough = ranked(narrow)
            return jax.lax.cond(enough, lambda: token, lambda: ranked(vocab_size)[0])

        needed = sampled & (by_rank | (slots.top_p < 1))
        return jnp.where(sampled, jax.lax.cond(jnp.any(needed), first_narrow, lambda: by_token(floor)), best)

    return jax.lax.cond(jnp.any(sampled & slots.active), sample, lambda: best)


def next_tokens(
    scores: Float[Array, "R V"], seen: Bool[Array, "R V"], slots: Slots, vocab_size: int
) -> tuple[Slots, Bool[Array, "R V"], NewTokens]:
    """Chooses a token for each active slot.

    Args:
      scores: logits of the next tokens.
      seen: which tokens each row has had.
      slots: settings and state.
      vocab_size: ids from here on only pad the embedding table.

    Returns:
      Slots of which those that ended are no longer active, `seen` with the new tokens, and the tokens.
    """
    rows = jnp.arange(len(scores))
    scores = mask_padding(scores, vocab_size)
    penalty = slots.repetition_penalty[:, None]
    adjusted = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    # Unused places of `stops` are −1, which `at` would take for the last token.
    stops = jnp.where(slots.stops < 0, scores.shape[-1], slots.stops)
    held = jnp.where(slots.made < slots.min_new_tokens, -jnp.inf, jnp.inf)
    adjusted = adjusted.at[rows[:, None], stops].min(held[:, None], mode="drop")
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(slots.key), slots.sample)
    token = choose_each(adjusted, jax.vmap(jax.random.fold_in)(keys, slots.made), slots)
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    count = min(MAX_ALTERNATIVES, scores.shape[-1])

    def best() -> tuple[Float[Array, "R top"], Int[Array, "R top"]]:
        return tuple(jax.lax.top_k(scores - total, count))

    def none() -> tuple[Float[Array, "R top"], Int[Array, "R top"]]:
        shape = len(scores), count
        return jnp.zeros(shape, scores.dtype), jnp.zeros(shape, jnp.int32)

    top_log_probs, top_ids = jax.lax.cond(jnp.any(slots.alternatives & slots.active), best, none)
    log_prob = scores[rows, token] - total[:, 0]
    made = slots.made + slots.active
    ended = jnp.any(token[:, None] == slots.stops, axis=1) | (made >= slots.max_new_tokens)
    new = NewTokens(*(x[:, None] for x in (jnp.where(slots.active, token, -1), log_prob, top_ids, top_log_probs)))
    seen = seen.at[rows, token].max(slots.active)
    token = jnp.where(slots.active, token, slots.token)
    return slots._replace(token=token, made=made, active=slots.active & ~ended), seen, new


# -- programs ---------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("apply", "length"))
def read_prompt(
    apply: Apply,
    length: int,
    params: Params,
    prompt: Int[Array, "1 P"],
    starts: Int[Array, " 1"],
    bidirectional: Bool[Array, ""] | None,
) -> tuple[Float[Array, "1 V"], PyTree]:
    """Logits of the token after a prompt that is padded on the left, and its cache of `length` columns."""
    own = {} if bidirectional is None else {"bidirectional": bidirectional}
    return apply(params, method="prefill", prompt_ids=prompt, starts=starts, length=length, **own)


@functools.partial(jax.jit, donate_argnames=("cache",))
def insert(cache: PyTree, row: Int[Array, ""], prompt: PyTree) -> PyTree:
    """The cache of all slots with that of a prompt in place of a row."""
    return cache.insert(row, prompt)


@functools.partial(jax.jit, static_argnames=("vocab_size",), donate_argnames=("seen",))
def first_tokens(
    vocab_size: int,
    seen: Bool[Array, "R V"],
    row: Int[Array, ""],
    own: Bool[Array, "1 V"],
    scores: Float[Array, "1 V"],
    slot: Slots,
) -> tuple[Bool[Array, "R V"], NewTokens]:
    """Chooses the first token of a slot.

    Args:
      vocab_size: ids from here on only pad the embedding table.
      seen: tokens that each slot has had.
      row: the slot.
      own: tokens of its prompt.
      scores: logits after its prompt.
      slot: the slot, alone.
    """
    _, own, new = next_tokens(scores, own, slot, vocab_size)
    return jax.lax.dynamic_update_slice_in_dim(seen, own, row, 0), new


@functools.partial(jax.jit, static_argnames=("apply", "vocab_size"), donate_argnames=("cache", "seen"))
def extend_slots(
    apply: Apply,
    vocab_size: int,
    params: Params,
    cache: PyTree,
    seen: Bool[Array, "R V"],
    slots: Slots,
    steps: Int[Array, ""],
    until_free: Bool[Array, ""],
) -> tuple[PyTree, Bool[Array, "R V"], NewTokens]:
    """Extends all active slots by up to `steps` tokens.

    Args:
      apply: runs the model.
      vocab_size: ids from here on only pad the embedding table.
      params: its parameters.
      cache: keys and values of each slot.
      seen: tokens that each slot has had.
      slots: settings and state.
      steps: at most `MAX_STEPS`.
      until_free: stop as soon as a slot becomes free, because a prompt waits for it.

    Returns:
      The cache, `seen`, and the new tokens.
    """

    def more(state: tuple) -> Bool[Array, ""]:
        done, now, *_ = state
        freed = until_free & jnp.any(slots.active & ~now.active)
        return (done < steps) & jnp.any(now.active) & ~freed

    def step(state: tuple) -> tuple:
        done, now, cache, seen, new = state
        scores, longer = apply(params, method="extend", ids=now.token, cache=cache)
        # A slot that is free keeps writing to the same column, so that it never leaves the cache.
        cache = longer._replace(index=jnp.where(now.active, longer.index, cache.index))
        now, seen, one = next_tokens(scores, seen, now, vocab_size)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=done, axis=1)
        return done + 1, now, cache, seen, jax.tree.map(write, new, one)

    rows, dtype = len(slots.token), jnp.promote_types(jax.tree.leaves(cache)[0].dtype, jnp.float32)
    top = rows, MAX_STEPS, min(MAX_ALTERNATIVES, seen.shape[1])
    new = NewTokens(
        jnp.full(top[:2], -1, jnp.int32), jnp.zeros(top[:2], dtype), jnp.zeros(top, jnp.int32), jnp.zeros(top, dtype)
    )
    *_, cache, seen, new = jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), slots, cache, seen, new))
    return cache, seen, new


# -- the cache of all slots -------------------------------------------------------------------------------------------


def empty_cache(apply: Apply, params: Params, rows: int, columns: int, memory: int | None) -> PyTree:
    """A cache of free slots.

    Args:
      apply: runs the model.
      params: its parameters.
      rows: number of slots.
      columns: longest text: of decoders with its prompt.
      memory: longest prompt of an encoder–decoder; None: the model is a decoder.
    """
    shapes = cache_shapes(apply, params, rows, columns, memory)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def cache_shapes(apply: Apply, params: Params, rows: int, columns: int, memory: int | None) -> PyTree:
    """Shapes of `empty_cache`."""
    prompts = jax.ShapeDtypeStruct((rows, 1 if memory is None else memory), jnp.int32)
    starts = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def prefill(params: Params, prompts: Int[Array, "R P"], starts: Int[Array, " R"]) -> PyTree:
        return apply(params, method="prefill", prompt_ids=prompts, starts=starts, length=columns)[1]

    return jax.eval_shape(prefill, params, prompts, starts)._replace(index=starts)


@functools.partial(jax.jit, static_argnames=("shapes",))
def resize(cache: PyTree, shapes: tuple[tuple[int, ...], ...]) -> PyTree:
    """The cache with more rows or columns, or with fewer, where the rest is not in use."""
    leaves, structure = jax.tree.flatten(cache)
    found = []
    for leaf, shape in zip(leaves, shapes, strict=True):
        kept = leaf[tuple(map(slice, shape))]
        found.append(jnp.pad(kept, [(0, new - old) for old, new in zip(kept.shape, shape, strict=True)]))
    return jax.tree.unflatten(structure, found)
