"""Log-likelihoods of given tokens at given positions, for all model families; prompts are scored with them."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.inference.encode import pad, padded_length
from bertgpt.inference.model import Model
from bertgpt.types import Apply, Inputs

MAX_POSITIONS = 256
"""positions whose logits over the vocabulary are held in memory at once"""


class Question(NamedTuple):
    """The input of a model and the tokens whose likelihood is asked for."""

    ids: tuple[int, ...]
    """input of the encoder or decoder"""
    positions: tuple[int, ...]
    """indices into `ids` whose hidden states predict the tokens"""
    tokens: tuple[int, ...]
    """tokens to score"""
    source: tuple[int, ...] = ()
    """input of the encoder of an encoder–decoder"""


def log_likelihoods(
    model: Model, questions: Sequence[Question], batch_size: int = 16
) -> list[Float[np.ndarray, " tokens"]]:
    """log p of each token of each question, in nats.

    Questions with the same input are computed once, and inputs of similar length are batched together.

    Args:
      model: from `bertgpt.load`.
      questions: what to score, from `prompting.question`.
      batch_size: sequences per batch.
    """
    asked: dict[tuple, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        asked[question.source, question.ids].append(number)
    inputs = sorted(asked, key=lambda key: (len(key[0]) + len(key[1]), key))
    found = [np.zeros(len(question.tokens)) for question in questions]
    height = min(batch_size, len(inputs))
    for first in range(0, len(inputs), max(height, 1)):
        batch = inputs[first : first + height]
        hidden = _hidden(model.apply, model.params, _pad_inputs(batch, height, model.config.max_len))
        wanted = [
            (row, position, token, number, i)
            for row, key in enumerate(batch)
            for number in asked[key]
            for i, (position, token) in enumerate(
                zip(questions[number].positions, questions[number].tokens, strict=True)
            )
        ]
        for start in range(0, len(wanted), MAX_POSITIONS):
            chunk = wanted[start : start + MAX_POSITIONS]
            triples = np.zeros((padded_length(len(chunk)), 3), np.int32)
            triples[: len(chunk)] = [item[:3] for item in chunk]
            method = "mlm_logits" if model.config.architecture == "encoder" else "lm_logits"
            log_p = _log_p(model.apply, method, model.tokenizer.vocab.size, model.params, hidden, triples)
            for (*_, number, i), value in zip(chunk, np.asarray(log_p, np.float64), strict=False):
                found[number][i] = value
    return found


def _pad_inputs(batch: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], height: int, max_len: int) -> Inputs:
    """`Inputs` of (source, ids) pairs, padded to a common length."""

    def padded(sequences: Sequence[Sequence[int]]) -> Inputs:
        longest = max(map(len, sequences))
        width = min(padded_length(longest), max(max_len, longest))
        ids, segments = pad(sequences, height, width)
        return Inputs(ids, segments)

    inputs = padded([ids for _, ids in batch])
    if not batch[0][0]:
        return inputs
    return padded([source for source, _ in batch])._replace(decoder=inputs)


@functools.partial(jax.jit, static_argnames=("apply",))
def _hidden(apply: Apply, params: PyTree, inputs: Inputs) -> Float[Array, "B S D"]:
    return apply(params, inputs)


@functools.partial(jax.jit, static_argnames=("apply", "method", "vocab_size"))
def _log_p(
    apply: Apply,
    method: str,
    vocab_size: int,
    params: PyTree,
    hidden: Float[Array, "B S D"],
    triples: Int[Array, "N 3"],
) -> Float[Array, " N"]:
    """log p of each (row, position, token), normalised over the tokens of the tokenizer."""
    row, position, token = triples.T
    logits = apply(params, method=method, hidden=hidden[row, position])[:, :vocab_size]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
