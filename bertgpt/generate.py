"""Text from prompts: batches, streaming, stop strings. What runs on the device is in `decoding`.

Prompts are padded to a power of two, so that few programs are compiled; the host looks into the loop only to stream or
to find stop strings. What a prompt gets depends on (prompt, seed) alone, not on the other prompts of its batch.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bertgpt.config import UserError
from bertgpt.decoding import Decoding, Rows, Stops, begin_rows, extend_rows, search_beams

SMALLEST_BUCKET = 16
WATCHED_TOKENS = 8  # tokens between two looks of the host, where it looks at all


class Output(NamedTuple):
    """One continuation."""

    ids: list[int]
    """new tokens, without the stop token"""
    score: float
    """log probability of all new tokens; of beams, that divided by length^length_penalty"""
    ended: bool
    """whether a stop token or string ended it, rather than max_new_tokens"""


Watch = Callable[[list[list[int]], Sequence[bool]], Sequence[bool]]


def bucket(length: int) -> int:
    """The smallest power of two that holds so many columns."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def generate_ids(
    apply: Callable,
    params: PyTree,
    config: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    stops: Stops,
    watch: Watch | None = None,
) -> list[list[Output]]:
    """Continues each prompt: one batch, `num_returns` outputs each.

    Args:
      apply: apply(params, …, method=…) of a model that has `prefill` and `extend`.
      params: its parameters.
      config: its config.
      prompts: token ids.
      decoding: how to choose.
      stops: where texts end.
      watch: called now and then with the new tokens of every row and which have ended; says which rows to end.

    Raises:
      UserError: a prompt is empty, or with the new tokens longer than the model's context.
    """
    check_prompts(config, prompts, decoding)
    width = bucket(max(map(len, prompts)))
    ids = np.full((len(prompts), width), stops.pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.asarray([width - len(prompt) for prompt in prompts], np.int32)
    static = {"apply": apply, "start_id": config.start_id, "d": dataclasses.replace(decoding, seed=0), "stops": stops}
    if decoding.num_beams > 1:
        if watch is not None:
            raise UserError("beam search can neither stream nor look for stop strings while it runs")
        state = search_beams(**static, params=params, prompts=ids, starts=starts)
        tokens, lengths, scores = jax.device_get((state.results, state.result_length, state.result_score))
    else:
        # Noise depends on the prompt, not on its place, so that no other prompt changes what it gets.
        seeds = jax.random.key_data(
            jnp.stack([jax.random.fold_in(jax.random.key(decoding.seed), zlib.crc32(row[s:].tobytes()))
                       for row, s in zip(ids, starts, strict=True)])
        )  # fmt: skip
        state = begin_rows(**static, params=params, prompts=ids, starts=starts, seeds=seeds)
        state = run_rows(state, functools.partial(extend_rows, **static, params=params), decoding, stops, watch)
        tokens, lengths, scores = jax.device_get((state.tokens, state.length, state.score))
        shape = (len(prompts), decoding.num_returns)
        tokens, lengths, scores = tokens.reshape(*shape, -1), lengths.reshape(shape), scores.reshape(shape)
    new = tokens[..., tokens.shape[-1] - decoding.max_new_tokens :]
    return [
        [output(new[b, k, : lengths[b, k]], float(scores[b, k]), stops) for k in range(decoding.num_returns)]
        for b in range(len(prompts))
    ]


def output(ids: np.ndarray, score: float, stops: Stops) -> Output:
    ended = len(ids) > 0 and int(ids[-1]) in stops.tokens
    return Output(ids[: len(ids) - ended].tolist(), score, bool(ended))


def run_rows(state: Rows, extend: Callable, d: Decoding, stops: Stops, watch: Watch | None) -> Rows:
    if watch is None:
        return extend(state=state, until=d.max_new_tokens)
    until = 1
    while True:
        tokens, lengths, done = jax.device_get((state.tokens, state.length, state.done))
        new = tokens[:, tokens.shape[1] - d.max_new_tokens :]
        rows = [output(row[:n], 0.0, stops).ids for row, n in zip(new, lengths, strict=True)]
        done = done | np.asarray(watch(rows, done | (until >= d.max_new_tokens)), bool)
        state = state._replace(done=jnp.asarray(done))
        if done.all() or until >= d.max_new_tokens:
            return state
        until = min(until + WATCHED_TOKENS, d.max_new_tokens)
        state = extend(state=state, until=until)


def check_prompts(config: Any, prompts: Sequence[Sequence[int]], d: Decoding) -> None:
    """Raises UserError for a model or a prompt that cannot be continued."""
    if not hasattr(config, "start_id"):
        raise UserError(f"{type(config).__name__.removesuffix('Config')} is an encoder and generates no text")
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty")
        if config.start_id is None and len(prompt) + d.max_new_tokens > config.max_len:
            room = config.max_len - len(prompt)
            advice = f"; lower max_new_tokens to {room}" if room > 0 else ""
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens and asks for {d.max_new_tokens} more, but the model's"
                f" context is {config.max_len}{advice}"
            )
