"""Decoding on the device: greedy, sampling and beam search, each one compiled loop over `prefill` and `extend`.

A batch holds prompts padded on the left. The loop writes into buffers of fixed size and ends when every row has ended.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from bertgpt.types import UserError

LOW = -1.0e9  # of what is not yet, or can no longer be, a result; sums with log probabilities stay finite


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to choose tokens. The default is greedy."""

    max_new_tokens: int = 64
    """tokens at most, stop token included"""
    min_new_tokens: int = 0
    """no stop token before this many tokens"""
    temperature: float = 0.0
    """0: take the best token; else sample from softmax(scores / temperature)"""
    top_k: int | None = None
    """sample among the k best (Fan et al. 2018)"""
    top_p: float = 1.0
    """sample among the fewest best whose probabilities add up to this (Holtzman et al. 2020)"""
    min_p: float = 0.0
    """sample among those with at least this fraction of the best one's probability (Nguyen et al. 2024)"""
    repetition_penalty: float = 1.0
    """divide the scores of tokens seen before by this, or multiply where negative (Keskar et al. 2019)"""
    no_repeat_ngram_size: int = 0
    """no n tokens twice in a row of tokens; 0: no such rule"""
    num_beams: int = 1
    """beams of beam search; 1: none"""
    length_penalty: float = 1.0
    """beam search ranks by log probability / length^this"""
    early_stopping: bool | Literal["never"] = False
    """end beam search when num_beams results are there (True), when none is likely (False) or able ("never") to win"""
    num_return_sequences: int = 1
    """texts for each prompt: samples, or the best beams"""
    seed: int = 0
    """of sampling"""
    bidirectional: bool = False
    """a decoder's prompt sees itself in both directions, as ConditionalLM(bidirectional=True) has taught it"""

    def __post_init__(self):
        for field, low in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1), ("num_return_sequences", 1)):
            if getattr(self, field) < low:
                raise UserError(f"{field}={getattr(self, field)} must be at least {low}")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(f"min_new_tokens={self.min_new_tokens} exceeds max_new_tokens={self.max_new_tokens}")
        if self.temperature < 0 or self.repetition_penalty <= 0 or self.no_repeat_ngram_size < 0:
            raise UserError("temperature and no_repeat_ngram_size must not be negative, and repetition_penalty not 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie in (0, 1] and min_p={self.min_p} in [0, 1]")
        if self.temperature and self.num_beams > 1:
            raise UserError("beam search does not sample: give either temperature or num_beams")
        if not self.temperature and self.num_return_sequences > self.num_beams:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences} needs sampling (temperature) or as many beams (num_beams)"
            )


class Stops(NamedTuple):
    """Where a text ends, and which ids there are."""

    tokens: tuple[int, ...]
    """any of these ends a text"""
    pad: int
    """fills up what is shorter"""
    vocab_size: int
    """ids from here on only pad the vocabulary and are never chosen"""


class Rows(NamedTuple):
    """State of greedy decoding and sampling. R rows: each prompt `num_return_sequences` times."""

    cache: PyTree
    tokens: Int[Array, "R T"]
    """prompt and what follows it"""
    starts: Int[Array, " R"]
    """column of each row's first token"""
    made: Int[Array, ""]
    """new tokens so far"""
    length: Int[Array, " R"]
    """new tokens of each row, stop token included"""
    done: Bool[Array, " R"]
    score: Float[Array, " R"]
    """log probability of the new tokens, by the model's own scores"""
    keys: Key[Array, " R"]


class Beams(NamedTuple):
    """State of beam search. K beams of each prompt run; K results are kept."""

    cache: PyTree
    tokens: Int[Array, "B K T"]
    starts: Int[Array, " B"]
    made: Int[Array, ""]
    score: Float[Array, "B K"]
    results: Int[Array, "B K T"]
    result_score: Float[Array, "B K"]
    result_length: Int[Array, "B K"]
    """new tokens of each result; 0: it is none yet"""
    done: Bool[Array, " B"]


# -- scores -----------------------------------------------------------------------------------------------------------


def mask_padding(scores: Float[Array, "R V"], vocab_size: int) -> Float[Array, "R V"]:
    """Rows of the table that no token has get −∞."""
    return jnp.where(jnp.arange(scores.shape[-1]) < vocab_size, scores, -jnp.inf)


def adjust(
    scores: Float[Array, "R V"],
    tokens: Int[Array, "R T"],
    starts: Int[Array, " R"],
    end: Int[Array, ""] | int,
    made: Int[Array, ""] | int,
    d: Decoding,
    stop_tokens: tuple[int, ...],
) -> Float[Array, "R V"]:
    """Applies what looks at the tokens so far, columns starts … end − 1: penalty, n-gram rule, minimal length."""
    rows, columns = jnp.arange(tokens.shape[0])[:, None], jnp.arange(tokens.shape[1])[None]

    def occur(tokens: Int[Array, "R W"], where: Bool[Array, "R W"]) -> Bool[Array, "R V"]:
        return jnp.zeros(scores.shape, bool).at[rows, tokens].max(where)

    real = (columns >= starts[:, None]) & (columns < end)
    if d.repetition_penalty != 1.0:
        penalised = jnp.where(scores < 0, scores * d.repetition_penalty, scores / d.repetition_penalty)
        scores = jnp.where(occur(tokens, real), penalised, scores)
    if d.no_repeat_ngram_size:
        n = d.no_repeat_ngram_size
        width = tokens.shape[1] - n + 1
        if width > 0:
            prefix = jax.lax.dynamic_slice_in_dim(tokens, end - (n - 1), n - 1, 1)
            match = real[:, :width] & (columns[:, :width] + n - 1 < end)
            for j in range(n - 1):
                match = match & (tokens[:, j : j + width] == prefix[:, j : j + 1])
            scores = jnp.where(occur(tokens[:, n - 1 :], match), -jnp.inf, scores)
    if d.min_new_tokens and stop_tokens:
        held = scores.at[:, jnp.asarray(stop_tokens)].set(-jnp.inf)
        scores = jnp.where(made < d.min_new_tokens, held, scores)
    return scores


def choose(scores: Float[Array, "R V"], keys: Key[Array, " R"], d: Decoding) -> Int[Array, " R"]:
    """The best token, or a sample after temperature, top-k, top-p and min-p, in this order."""
    if d.temperature == 0:
        return jnp.argmax(scores, axis=-1)
    scores, names = scores / d.temperature, None
    if d.top_k is not None and d.top_k < scores.shape[-1]:
        scores, names = jax.lax.top_k(scores, d.top_k)
    if d.top_p < 1:
        falling = scores if names is not None else jnp.flip(jnp.sort(scores, axis=-1), axis=-1)
        probability = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where(before < d.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if d.min_p > 0:
        scores = jnp.where(scores < jnp.max(scores, axis=-1, keepdims=True) + np.log(d.min_p), -jnp.inf, scores)
    drawn = jax.vmap(jax.random.categorical)(keys, scores)
    return drawn if names is None else jnp.take_along_axis(names, drawn[:, None], axis=1)[:, 0]


# -- greedy decoding and sampling -------------------------------------------------------------------------------------

STATIC = ("apply", "start_id", "d", "stops")


def make_buffer(
    prompts: Int[Array, "B P"], starts: Int[Array, " B"], start_id: int | None, d: Decoding, pad: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """The prompt, or an encoder–decoder's start token, then room for new tokens; and the column of the first token."""
    if start_id is not None:
        prompts, starts = jnp.full((len(prompts), 1), start_id, prompts.dtype), jnp.zeros_like(starts)
    room = jnp.full((len(prompts), d.max_new_tokens), pad, prompts.dtype)
    return jnp.concatenate([prompts, room], axis=1), starts


def prefill(
    apply: Callable,
    params: PyTree,
    prompts: Int[Array, "B P"],
    starts: Int[Array, " B"],
    length: int,
    d: Decoding,
) -> tuple[Float[Array, "B V"], PyTree]:
    """Logits of the token after each prompt, and the cache; only the `prefill` of decoders takes `bidirectional`."""
    own = {"bidirectional": True} if d.bidirectional else {}
    return apply(params, method="prefill", prompt_ids=prompts, starts=starts, length=length, **own)


@functools.partial(jax.jit, static_argnames=STATIC)
def begin_rows(
    apply: Callable,
    start_id: int | None,
    d: Decoding,
    stops: Stops,
    params: PyTree,
    prompts: Int[Array, "B P"],
    starts: Int[Array, " B"],
    seeds: Array,
) -> Rows:
    """Reads the prompts and chooses the first tokens."""
    tokens, first = make_buffer(prompts, starts, start_id, d, stops.pad)
    scores, cache = prefill(apply, params, prompts, starts, tokens.shape[1], d)
    number = len(prompts) * d.num_return_sequences
    every = functools.partial(jnp.repeat, repeats=d.num_return_sequences, axis=0)
    keys = jax.vmap(jax.random.fold_in)(
        every(jax.random.wrap_key_data(seeds)), jnp.arange(number) % d.num_return_sequences
    )
    state = Rows(
        *(cache.repeat(d.num_return_sequences), every(tokens), every(first)),
        *(jnp.zeros((), jnp.int32), jnp.zeros(number, jnp.int32), jnp.zeros(number, bool), jnp.zeros(number), keys),
    )
    return append(state, every(scores), d, stops)


def append(state: Rows, scores: Float[Array, "R V"], d: Decoding, stops: Stops) -> Rows:
    """Chooses a token for each row that has not ended."""
    scores = mask_padding(scores, stops.vocab_size)
    end = state.tokens.shape[1] - d.max_new_tokens + state.made
    adjusted = adjust(scores, state.tokens, state.starts, end, state.made, d, stops.tokens)
    token = choose(adjusted, jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.made), d)
    gain = jnp.take_along_axis(jax.nn.log_softmax(scores), token[:, None], axis=1)[:, 0]
    token = jnp.where(state.done, stops.pad, token).astype(state.tokens.dtype)
    return state._replace(
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], end, 1),
        made=state.made + 1,
        length=state.length + ~state.done,
        done=state.done | jnp.isin(token, jnp.asarray(stops.tokens, token.dtype)),
        score=state.score + jnp.where(state.done, 0.0, gain),
    )


@functools.partial(jax.jit, static_argnames=STATIC, donate_argnames=("state",))
def extend_rows(
    apply: Callable,
    start_id: int | None,
    d: Decoding,
    stops: Stops,
    params: PyTree,
    state: Rows,
    until: Int[Array, ""] | int,
) -> Rows:
    """Goes on to `until` new tokens, or until every row has ended."""

    def step(state: Rows) -> Rows:
        last = state.tokens.shape[1] - d.max_new_tokens + state.made - 1
        token = jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, 1)[:, 0]
        scores, cache = apply(params, method="extend", ids=token, cache=state.cache)
        return append(state._replace(cache=cache), scores, d, stops)

    return jax.lax.while_loop(lambda s: (s.made < until) & ~jnp.all(s.done), step, state)


# -- beam search ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=STATIC)
def search_beams(
    apply: Callable,
    start_id: int | None,
    d: Decoding,
    stops: Stops,
    params: PyTree,
    prompts: Int[Array, "B P"],
    starts: Int[Array, " B"],
) -> Beams:
    """Beam search from the prompts to the end, by the rules of transformers' own, so that texts are the same."""
    tokens, first = make_buffer(prompts, starts, start_id, d, stops.pad)
    scores, cache = prefill(apply, params, prompts, starts, tokens.shape[1], d)
    batch, beams = len(prompts), d.num_beams
    tokens = jnp.repeat(tokens[:, None], beams, axis=1)
    low = jnp.full((batch, beams), LOW)
    state = Beams(
        *(cache.repeat(beams), tokens, first, jnp.zeros((), jnp.int32), low.at[:, 0].set(0.0)),  # one beam to start
        *(tokens, low, jnp.zeros((batch, beams), jnp.int32), jnp.zeros(batch, bool)),
    )

    def step(state: Beams) -> Beams:
        last = state.tokens.shape[2] - d.max_new_tokens + state.made - 1
        token = jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, 2).reshape(-1)
        scores, cache = apply(params, method="extend", ids=token, cache=state.cache)
        return branch(state._replace(cache=cache), scores, d, stops)

    state = branch(state, jnp.repeat(scores, beams, axis=0), d, stops)
    return jax.lax.while_loop(lambda s: (s.made < d.max_new_tokens) & ~jnp.all(s.done), step, state)


def take(x: Array, index: Int[Array, "B N"]) -> Array:
    """x[b, index[b, n]] over the axis of beams."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def branch(state: Beams, scores: Float[Array, "R V"], d: Decoding, stops: Stops) -> Beams:
    """One step: the best continuations of all beams; those that end compete for results, the others run on."""
    batch, beams, width = state.tokens.shape
    end = width - d.max_new_tokens + state.made
    gain = jax.nn.log_softmax(mask_padding(scores, stops.vocab_size))
    starts = jnp.repeat(state.starts, beams)
    gain = adjust(gain, state.tokens.reshape(-1, width), starts, end, state.made, d, stops.tokens)
    total = (gain.reshape(batch, beams, -1) + state.score[..., None]).reshape(batch, -1)
    # So many candidates that, if every beam could end by every stop token, as many as there are beams run on.
    score, index = jax.lax.top_k(total, max(2, 1 + len(stops.tokens)) * beams)
    parent, token = index // gain.shape[-1], (index % gain.shape[-1]).astype(state.tokens.dtype)
    tokens = jax.lax.dynamic_update_slice_in_dim(take(state.tokens, parent), token[..., None], end, 2)
    made = state.made + 1
    ends = jnp.isin(token, jnp.asarray(stops.tokens, token.dtype)) | (made >= d.max_new_tokens)

    running, runs_on = jax.lax.top_k(score + ends * LOW, beams)
    source = (take(parent, runs_on) + jnp.arange(batch)[:, None] * beams).reshape(-1)

    # Only the best candidates may become results; a prompt that is done takes no more.
    may_end = ends & (jnp.arange(score.shape[1]) < beams)
    ranked = score / made.astype(score.dtype) ** d.length_penalty + (~may_end | state.done[:, None]) * LOW
    result_score, kept = jax.lax.top_k(jnp.concatenate([state.result_score, ranked], axis=1), beams)
    lengths = jnp.concatenate([state.result_length, jnp.where(may_end, made, 0)], axis=1)
    result_length = take(lengths, kept)

    complete = result_length > 0
    horizon = d.max_new_tokens if d.early_stopping == "never" and d.length_penalty > 0 else made
    best = running[:, :1] / jnp.asarray(horizon, score.dtype) ** d.length_penalty
    worst = jnp.where(complete, jnp.min(result_score, axis=1, keepdims=True), LOW)
    done = state.done | ~jnp.any(best > worst, axis=1)
    if d.early_stopping is True:
        done = done | jnp.all(complete, axis=1)
    return Beams(
        *(state.cache.choose(source), take(tokens, runs_on), state.starts, made, running),
        *(take(jnp.concatenate([state.results, tokens], axis=1), kept), result_score, result_length, done),
    )
