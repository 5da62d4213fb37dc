"""Decoding on the device: greedy search, sampling and beam search, each a compiled loop over `prefill` and `extend`.

The prompts of a batch are padded on the left. The loop writes to buffers of fixed size and stops when all rows have
ended.
"""

import dataclasses
import functools
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from bertgpt.ranges import Count, Fraction, Natural, NonNegative, Positive, Range, Seed, check_fields
from bertgpt.types import Apply, UserError

LOW = -1.0e9  # score of a candidate that is not a result; unlike −∞, sums with log probabilities stay finite


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: the names and meanings of transformers' GenerationConfig. The default is greedy search.

    In place of `do_sample`, a temperature above 0 samples.
    """

    max_new_tokens: Count = 64
    """maximum number of new tokens, including the stop token"""
    min_new_tokens: Natural = 0
    """minimum number of new tokens before a stop token"""
    temperature: NonNegative = 0.0
    """0: greedy; otherwise sample from softmax(logits / temperature)"""
    top_k: Count | None = None
    """sample from the k most probable tokens (Fan et al. 2018); None: from all"""
    top_p: Annotated[float, Range(0.0, 1.0, above=True)] = 1.0
    """sample from the smallest set of most probable tokens whose probabilities reach this sum (Holtzman et al. 2020)"""
    min_p: Fraction = 0.0
    """sample from tokens with at least this fraction of the highest probability (Nguyen et al. 2024)"""
    repetition_penalty: Positive = 1.0
    """divide positive logits of earlier tokens by this, multiply negative ones (Keskar et al. 2019); 1: off"""
    no_repeat_ngram_size: Natural = 0
    """no n-gram of this size occurs twice; 0: off"""
    num_beams: Annotated[int, Range(1, 1_000)] = 1
    """beams of beam search; 1: no beam search"""
    length_penalty: Annotated[float, Range(-100.0, 100.0)] = 1.0
    """beam search ranks by log probability / length^length_penalty"""
    early_stopping: bool | Literal["never"] = False
    """when beam search ends: with num_beams results (True), when a better one is unlikely (False), or cannot come
    ("never")"""
    num_return_sequences: Annotated[int, Range(1, 10_000)] = 1
    """outputs per prompt: independent samples, or the best beams"""
    seed: Seed = 0
    """seed of sampling"""
    bidirectional: bool = False
    """decoders trained with ConditionalLM(bidirectional=True): the prompt attends to itself in both directions"""

    def __post_init__(self):
        check_fields(self)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(f"min_new_tokens={self.min_new_tokens} exceeds max_new_tokens={self.max_new_tokens}")
        if self.temperature and self.num_beams > 1:
            raise UserError("beam search does not sample: give either temperature or num_beams")
        if not self.temperature and self.num_return_sequences > self.num_beams:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences} needs sampling (temperature) or as many beams"
                " (num_beams)"
            )


class Stops(NamedTuple):
    """The tokens that end a text, and the ids that may be chosen."""

    tokens: tuple[int, ...]
    """each of them ends a text"""
    pad: int
    """fills the places after the end"""
    vocab_size: int
    """ids from here on are rows that only pad the embedding table; they are never chosen"""


class SampleState(NamedTuple):
    """State of greedy search and sampling. R rows: each prompt `num_return_sequences` times."""

    cache: PyTree
    tokens: Int[Array, "R T"]
    """prompts and new tokens"""
    starts: Int[Array, " R"]
    """column of each row's first token"""
    made: Int[Array, ""]
    """number of new tokens so far"""
    length: Int[Array, " R"]
    """number of new tokens of each row, including the stop token"""
    done: Bool[Array, " R"]
    score: Float[Array, " R"]
    """log probability of the new tokens according to the unmodified logits"""
    keys: Key[Array, " R"]


class BeamState(NamedTuple):
    """State of beam search: for each prompt K running beams and the K best results so far."""

    cache: PyTree
    tokens: Int[Array, "B K T"]
    starts: Int[Array, " B"]
    made: Int[Array, ""]
    score: Float[Array, "B K"]
    results: Int[Array, "B K T"]
    result_score: Float[Array, "B K"]
    result_length: Int[Array, "B K"]
    """number of new tokens of each result; 0: no result yet"""
    done: Bool[Array, " B"]


# -- logits -----------------------------------------------------------------------------------------------------------


def mask_padding(scores: Float[Array, "R V"], vocab_size: int) -> Float[Array, "R V"]:
    """−∞ for the ids that only pad the embedding table."""
    return jnp.where(jnp.arange(scores.shape[-1]) < vocab_size, scores, -jnp.inf)


def adjust(
    scores: Float[Array, "R V"],
    tokens: Int[Array, "R T"],
    starts: Int[Array, " R"],
    end: Int[Array, ""] | int,
    made: Int[Array, ""] | int,
    decoding: Decoding,
    stop_tokens: tuple[int, ...],
) -> Float[Array, "R V"]:
    """Applies the rules that depend on earlier tokens: repetition penalty, repeated n-grams, minimum length.

    Args:
      scores: logits or log probabilities of the next token.
      tokens: buffer, whose columns starts … end − 1 hold the tokens so far.
      starts: first column of each row.
      end: column of the next token.
      made: number of new tokens so far.
      decoding: the settings.
      stop_tokens: tokens that end a text.
    """
    rows, columns = jnp.arange(tokens.shape[0])[:, None], jnp.arange(tokens.shape[1])[None]

    def occur(tokens: Int[Array, "R W"], where: Bool[Array, "R W"]) -> Bool[Array, "R V"]:
        return jnp.zeros(scores.shape, bool).at[rows, tokens].max(where)

    real = (columns >= starts[:, None]) & (columns < end)
    if decoding.repetition_penalty != 1.0:
        penalised = jnp.where(scores < 0, scores * decoding.repetition_penalty, scores / decoding.repetition_penalty)
        scores = jnp.where(occur(tokens, real), penalised, scores)
    if decoding.no_repeat_ngram_size:
        n = decoding.no_repeat_ngram_size
        width = tokens.shape[1] - n + 1
        if width > 0:
            prefix = jax.lax.dynamic_slice_in_dim(tokens, end - (n - 1), n - 1, 1)
            match = real[:, :width] & (columns[:, :width] + n - 1 < end)
            for j in range(n - 1):
                match = match & (tokens[:, j : j + width] == prefix[:, j : j + 1])
            scores = jnp.where(occur(tokens[:, n - 1 :], match), -jnp.inf, scores)
    if decoding.min_new_tokens and stop_tokens:
        held = scores.at[:, jnp.asarray(stop_tokens)].set(-jnp.inf)
        scores = jnp.where(made < decoding.min_new_tokens, held, scores)
    return scores


def choose(scores: Float[Array, "R V"], keys: Key[Array, " R"], decoding: Decoding) -> Int[Array, " R"]:
    """The best token, or a sample after temperature, top-k, top-p and min-p, applied in this order."""
    if decoding.temperature == 0:
        return jnp.argmax(scores, axis=-1)
    scores, ids = scores / decoding.temperature, None
    if decoding.top_k is not None and decoding.top_k < scores.shape[-1]:
        scores, ids = jax.lax.top_k(scores, decoding.top_k)
    if decoding.top_p < 1:
        descending = scores if ids is not None else jnp.flip(jnp.sort(scores, axis=-1), axis=-1)
        probability = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where(before < decoding.top_p, descending, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if decoding.min_p > 0:
        scores = jnp.where(scores < jnp.max(scores, axis=-1, keepdims=True) + np.log(decoding.min_p), -jnp.inf, scores)
    sample = jax.vmap(jax.random.categorical)(keys, scores)
    return sample if ids is None else jnp.take_along_axis(ids, sample[:, None], axis=1)[:, 0]


# -- greedy search and sampling ---------------------------------------------------------------------------------------

STATIC = ("apply", "start_id", "decoding", "stops")


def make_buffer(
    prompts: Int[Array, "B P"], starts: Int[Array, " B"], start_id: int | None, decoding: Decoding, pad: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """(buffer, first column of each row): the prompt, or an encoder–decoder's start token, then room for new tokens."""
    if start_id is not None:
        prompts, starts = jnp.full((len(prompts), 1), start_id, prompts.dtype), jnp.zeros_like(starts)
    room = jnp.full((len(prompts), decoding.max_new_tokens), pad, prompts.dtype)
    return jnp.concatenate([prompts, room], axis=1), starts


def prefill(
    apply: Apply,
    params: PyTree,
    prompts: Int[Array, "B P"],
    starts: Int[Array, " B"],
    length: int,
    decoding: Decoding,
    images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None = None,
) -> tuple[Float[Array, "B V"], PyTree]:
    """Logits of the token after each prompt, and the cache.

    Only the `prefill` of decoders takes `bidirectional`, and only that of models of images takes `images`.
    """
    own = {"bidirectional": True} if decoding.bidirectional else {}
    own |= {} if images is None else {"images": images}
    return apply(params, method="prefill", prompt_ids=prompts, starts=starts, length=length, **own)


@functools.partial(jax.jit, static_argnames=STATIC)
def start_sampling(
    apply: Apply,
    start_id: int | None,
    decoding: Decoding,
    stops: Stops,
    params: PyTree,
    prompts: Int[Array, "B P"],
    starts: Int[Array, " B"],
    seeds: Array,
    images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None = None,
) -> SampleState:
    """Runs the prompts through the model and chooses the first tokens."""
    tokens, first = make_buffer(prompts, starts, start_id, decoding, stops.pad)
    scores, cache = prefill(apply, params, prompts, starts, tokens.shape[1], decoding, images)
    number = len(prompts) * decoding.num_return_sequences
    every = functools.partial(jnp.repeat, repeats=decoding.num_return_sequences, axis=0)
    keys = jax.vmap(jax.random.fold_in)(
        every(jax.random.wrap_key_data(seeds)), jnp.arange(number) % decoding.num_return_sequences
    )
    state = SampleState(
        cache=cache.repeat(decoding.num_return_sequences),
        tokens=every(tokens),
        starts=every(first),
        made=jnp.zeros((), jnp.int32),
        length=jnp.zeros(number, jnp.int32),
        done=jnp.zeros(number, bool),
        score=jnp.zeros(number),
        keys=keys,
    )
    return append(state, every(scores), decoding, stops)


def append(state: SampleState, scores: Float[Array, "R V"], decoding: Decoding, stops: Stops) -> SampleState:
    """Chooses the next token of each row that has not ended."""
    scores = mask_padding(scores, stops.vocab_size)
    end = state.tokens.shape[1] - decoding.max_new_tokens + state.made
    adjusted = adjust(scores, state.tokens, state.starts, end, state.made, decoding, stops.tokens)
    token = choose(adjusted, jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.made), decoding)
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
def continue_sampling(
    apply: Apply,
    start_id: int | None,
    decoding: Decoding,
    stops: Stops,
    params: PyTree,
    state: SampleState,
    until: Int[Array, ""] | int,
) -> SampleState:
    """Continues until there are `until` new tokens, or until all rows have ended."""

    def step(state: SampleState) -> SampleState:
        last = state.tokens.shape[1] - decoding.max_new_tokens + state.made - 1
        token = jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, 1)[:, 0]
        scores, cache = apply(params, method="extend", ids=token, cache=state.cache)
        return append(state._replace(cache=cache), scores, decoding, stops)

    return jax.lax.while_loop(lambda s: (s.made < until) & ~jnp.all(s.done), step, state)


# -- beam search ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=STATIC)
def search_beams(
    apply: Apply,
    start_id: int | None,
    decoding: Decoding,
    stops: Stops,
    params: PyTree,
    prompts: Int[Array, "B P"],
    starts: Int[Array, " B"],
    images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None = None,
) -> BeamState:
    """Beam search by the rules of transformers, so that the texts are the same."""
    tokens, first = make_buffer(prompts, starts, start_id, decoding, stops.pad)
    scores, cache = prefill(apply, params, prompts, starts, tokens.shape[1], decoding, images)
    batch, beams = len(prompts), decoding.num_beams
    tokens = jnp.repeat(tokens[:, None], beams, axis=1)
    low = jnp.full((batch, beams), LOW)
    state = BeamState(
        cache=cache.repeat(beams),
        tokens=tokens,
        starts=first,
        made=jnp.zeros((), jnp.int32),
        score=low.at[:, 0].set(0.0),  # all beams are the same at first, so only one may branch
        results=tokens,
        result_score=low,
        result_length=jnp.zeros((batch, beams), jnp.int32),
        done=jnp.zeros(batch, bool),
    )

    def step(state: BeamState) -> BeamState:
        last = state.tokens.shape[2] - decoding.max_new_tokens + state.made - 1
        token = jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, 2).reshape(-1)
        scores, cache = apply(params, method="extend", ids=token, cache=state.cache)
        return branch(state._replace(cache=cache), scores, decoding, stops)

    state = branch(state, jnp.repeat(scores, beams, axis=0), decoding, stops)
    return jax.lax.while_loop(lambda s: (s.made < decoding.max_new_tokens) & ~jnp.all(s.done), step, state)


def take(x: Array, index: Int[Array, "B N"]) -> Array:
    """x[b, index[b, n]], along the axis of beams."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def branch(state: BeamState, scores: Float[Array, "R V"], decoding: Decoding, stops: Stops) -> BeamState:
    """One step: the best continuations of all beams. Those that end become results, the others stay beams."""
    batch, beams, width = state.tokens.shape
    end = width - decoding.max_new_tokens + state.made
    gain = jax.nn.log_softmax(mask_padding(scores, stops.vocab_size))
    starts = jnp.repeat(state.starts, beams)
    gain = adjust(gain, state.tokens.reshape(-1, width), starts, end, state.made, decoding, stops.tokens)
    total = (gain.reshape(batch, beams, -1) + state.score[..., None]).reshape(batch, -1)
    # Enough candidates that num_beams remain even if each beam can end with each stop token.
    score, index = jax.lax.top_k(total, max(2, 1 + len(stops.tokens)) * beams)
    parent, token = index // gain.shape[-1], (index % gain.shape[-1]).astype(state.tokens.dtype)
    tokens = jax.lax.dynamic_update_slice_in_dim(take(state.tokens, parent), token[..., None], end, 2)
    made = state.made + 1
    ends = jnp.isin(token, jnp.asarray(stops.tokens, token.dtype)) | (made >= decoding.max_new_tokens)

    running, kept_beams = jax.lax.top_k(score + ends * LOW, beams)
    source = (take(parent, kept_beams) + jnp.arange(batch)[:, None] * beams).reshape(-1)

    # Only the num_beams best candidates may become results; a prompt that is done takes no more.
    may_end = ends & (jnp.arange(score.shape[1]) < beams)
    ranked = score / made.astype(score.dtype) ** decoding.length_penalty + (~may_end | state.done[:, None]) * LOW
    result_score, kept = jax.lax.top_k(jnp.concatenate([state.result_score, ranked], axis=1), beams)
    lengths = jnp.concatenate([state.result_length, jnp.where(may_end, made, 0)], axis=1)
    result_length = take(lengths, kept)

    complete = result_length > 0
    horizon = decoding.max_new_tokens if decoding.early_stopping == "never" and decoding.length_penalty > 0 else made
    best = running[:, :1] / jnp.asarray(horizon, score.dtype) ** decoding.length_penalty
    worst = jnp.where(complete, jnp.min(result_score, axis=1, keepdims=True), LOW)
    done = state.done | ~jnp.any(best > worst, axis=1)
    if decoding.early_stopping is True:
        done = done | jnp.all(complete, axis=1)
    return BeamState(
        cache=state.cache.choose(source),
        tokens=take(tokens, kept_beams),
        starts=state.starts,
        made=made,
        score=running,
        results=take(jnp.concatenate([state.results, tokens], axis=1), kept),
        result_score=result_score,
        result_length=result_length,
        done=done,
    )
