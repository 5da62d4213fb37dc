"""The contract between an objective and the training loop, and the pieces objectives share.

An objective hands back *sums and counts*, never means: microbatches and devices hold different numbers of predicted
positions, and a mean of means weighs them wrongly. The loop adds both over the global batch and divides once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Batch = dict[str, Array]
Params = Any
# apply(params, *args, method="name", rng=key): runs one method of the model; without rng, dropout is off.
Apply = Callable[..., Any]


class Sum(NamedTuple):
    """A weighted sum and its total weight; the quantity meant is sum / weight."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


class Loss(NamedTuple):
    """What one (micro)batch contributes.

    terms: name → Sum; the loss is Σ over terms of (sum / weight), each divided by its own weight over the *global*
      batch (BERT: mean MLM loss + mean NSP loss, which have different counts).
    metrics: name → Sum, reported and not minimised.
    """

    terms: dict[str, Sum]
    metrics: dict[str, Sum]


class Objective(NamedTuple):
    """Three pure functions.

    prepare(key, batch) → batch: corruption and choice of positions, on device, once for the whole global batch.
    loss(apply, params, batch, key) → Loss; key=None means evaluation, without dropout.
    predict(apply, params, batch) → dict of arrays, for `bertgpt predict`.
    """

    prepare: Callable[[Key[Array, ""], Batch], Batch]
    loss: Callable[[Apply, Params, Batch, Key[Array, ""] | None], Loss]
    predict: Callable[[Apply, Params, Batch], dict[str, Array]]


def encode(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None = None) -> Float[Array, "B S D"]:
    """Hidden states of a batch, packed rows included."""
    return apply(params, batch["input_ids"], batch["segment_ids"], batch["positions"], batch["type_ids"], rng=rng)


def gather_positions(x: Float[Array, "B S D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """x[b, positions[b, m]]: only these rows reach the vocabulary projection."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


def negative_log_likelihood(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """−log softmax(logits)[label] = logsumexp(logits) − logits[label], per example and in nats."""
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def classification(
    logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"], weights: Float[Array, "*batch"]
) -> tuple[Sum, Sum]:
    """(cross-entropy, accuracy) as weighted sums."""
    total = jnp.sum(weights)
    nll = negative_log_likelihood(logits, labels)
    correct: Bool[Array, "*batch"] = jnp.argmax(logits, axis=-1) == labels
    return Sum(jnp.sum(nll * weights), total), Sum(jnp.sum(correct * weights), total)


def valid_labels(labels: Int[Array, " B"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Labels of −1 mark rows that only fill up a batch: (labels safe to index with, weights 0 or 1)."""
    return jnp.maximum(labels, 0), (labels >= 0).astype(jnp.float32)
