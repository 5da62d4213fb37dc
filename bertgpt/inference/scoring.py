"""How likely a model finds given texts at given places, whatever its family: what prompts are scored by."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bertgpt.inference.encode import bucket, pad_rows
from bertgpt.inference.model import Model
from bertgpt.types import Apply, Inputs

PLACES = 256  # places whose scores of all words are held at once


class Question(NamedTuple):
    """What to feed a model to learn the likelihood of one text."""

    ids: tuple[int, ...]
    """what the encoder or decoder reads"""
    places: tuple[int, ...]
    """places in `ids` whose states predict the words"""
    words: tuple[int, ...]
    """tokens to score"""
    source: tuple[int, ...] = ()
    """what the encoder of an encoder–decoder reads"""


def log_likelihoods(
    model: Model, questions: Sequence[Question], batch_size: int = 16
) -> list[Float[np.ndarray, " words"]]:
    """log p of each word of each question, in nats.

    Questions that feed the model the same are computed once; those of like length go together.
    """
    asked: dict[tuple, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        asked[question.source, question.ids].append(number)
    inputs = sorted(asked, key=lambda key: (len(key[0]) + len(key[1]), key))
    found = [np.zeros(len(question.words)) for question in questions]
    height = min(batch_size, len(inputs))
    for first in range(0, len(inputs), max(height, 1)):
        chosen = inputs[first : first + height]
        tables = [*padded([ids for _, ids in chosen], height, model.config)]
        if chosen[0][0]:
            tables += padded([source for source, _ in chosen], height, None)
        hidden = _states(model.apply, model.params, *tables)
        wanted = [
            (row, place, word, number, i)
            for row, key in enumerate(chosen)
            for number in asked[key]
            for i, (place, word) in enumerate(zip(questions[number].places, questions[number].words, strict=True))
        ]
        for start in range(0, len(wanted), PLACES):
            some = wanted[start : start + PLACES]
            triples = np.zeros((bucket(len(some)), 3), np.int32)
            triples[: len(some)] = [item[:3] for item in some]
            method = "mlm_logits" if model.config.architecture == "encoder" else "lm_logits"
            log_p = _log_p(model.apply, method, model.tokenizer.vocab.size, model.params, hidden, triples)
            for (*_, number, i), value in zip(some, np.asarray(log_p, np.float64), strict=False):
                found[number][i] = value
    return found


def padded(rows: Sequence[Sequence[int]], height: int, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """`pad_rows` in the bucket of the longest."""
    width = bucket(max(map(len, rows)))
    if config is not None:
        width = min(width, config.max_len)
    return pad_rows(rows, height, width)


@functools.partial(jax.jit, static_argnames=("apply",))
def _states(
    apply: Apply,
    params: PyTree,
    ids: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    source: Int[Array, "B T"] | None = None,
    source_segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B S D"]:
    if source is None:
        return apply(params, Inputs(ids, segments))
    return apply(params, Inputs(source, source_segments, decoder=Inputs(ids, segments)))


@functools.partial(jax.jit, static_argnames=("apply", "method", "vocab_size"))
def _log_p(
    apply: Apply,
    method: str,
    vocab_size: int,
    params: PyTree,
    hidden: Float[Array, "B S D"],
    triples: Int[Array, "N 3"],
) -> Float[Array, " N"]:
    """log p of the word at (row, place), among the tokens that the tokenizer has."""
    row, place, word = triples.T
    logits = apply(params, method=method, hidden=hidden[row, place])[:, :vocab_size]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), word[:, None], axis=-1)[:, 0]
