"""The contract between an objective and the training loop, and the pieces objectives share.

An objective hands back *sums and counts*, never means: microbatches and devices hold different numbers of predicted
positions, and a mean of means weighs them wrongly. The loop adds both over the global batch and divides once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.types import TEXT_SPEC, Apply, Batch, Inputs, Params, Sum, UserError, Vocab
from bertgpt.types import Objective as Objective
from bertgpt.types import Targets as Targets

# Scores of words are computed for at most this many (position, word) pairs of a device at once: 512 MB in float32.
MAX_SCORES = 2**27


def inputs_of(batch: Batch) -> Inputs:
    """The fields of a batch that models read; `decoder_…` fields are what the decoder of an encoder–decoder reads."""
    fields = ("input_ids", "segment_ids", "positions", "type_ids", "embeds", "prefix", "bidirectional")
    decoder = None
    if "decoder_ids" in batch:
        decoder = Inputs(batch["decoder_ids"], batch["decoder_segment_ids"], batch["decoder_positions"])
    return Inputs(**{name: batch.get(name) for name in fields}, decoder=decoder)


def flatten_texts(batch: Batch) -> Batch:
    """The texts of a batch with several texts an example, [B, N, S], as [B·N, S]."""
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in TEXT_SPEC}


def encode(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None = None, method: str = "__call__"
) -> Float[Array, "B S D"]:
    """Hidden states of a batch."""
    return apply(params, inputs_of(batch), method=method, rng=rng)


def gather_positions(x: Float[Array, "B S D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """x[b, positions[b, m]]: only these rows reach the vocabulary projection."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


def scaled(term: Sum, factor: float) -> Sum:
    """The term counted `factor`-fold."""
    return Sum(term.sum * factor, term.weight)


def is_ordinary(ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], vocab: Vocab) -> Bool[Array, "B S"]:
    """True for real tokens: neither padding nor special ([UNK] is special: there is no word to predict)."""
    if not vocab.special:
        return segment_ids > 0
    return (segment_ids > 0) & ~jnp.isin(ids, jnp.asarray(vocab.special))


def count_by_document(which: Bool[Array, "B S"], segment_ids: Int[Array, "B S"]) -> Int[Array, "B D"]:
    """How many tokens of document 0, 1, … S of each row."""
    zeros = jnp.zeros(which.shape[1] + 1, jnp.int32)
    return jax.vmap(lambda at, one: zeros.at[at].add(one))(segment_ids, which.astype(jnp.int32))


# -- words ------------------------------------------------------------------------------------------------------------


class WordScores(NamedTuple):
    """How a model rates the words at some positions, per position and in nats."""

    nll: Float[Array, "B M"]
    """−log softmax(logits)[label]"""
    uniform_nll: Float[Array, "B M"]
    """the mean of −log softmax(logits) over all words: what label smoothing mixes in"""
    log_z: Float[Array, "B M"]
    """logsumexp(logits), which z-loss holds near 0"""
    correct: Bool[Array, "B M"]
    """the label has the highest score"""
    sampled: Int[Array, "B M"] | None = None
    """a word drawn from softmax(logits), if asked for"""


def score_words(
    apply: Apply,
    params: Params,
    hidden: Float[Array, "B M D"],
    labels: Int[Array, "B M"],
    *,
    method: str,
    rng: Key[Array, ""] | None = None,
    uniforms: Float[Array, "B M"] | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
) -> WordScores:
    """Scores from the model's `method`, hidden states → logits [.., V].

    Where B·M·V is large, positions are taken in several turns and their logits computed again in the backward pass, so
    that they never exist for all positions at once. Turns split M, not B, so that every device works in each.

    Args:
      apply, params, rng: of the objective's loss.
      hidden: states at the positions.
      labels: the words there.
      method: name of the model's method.
      uniforms: numbers uniform in [0, 1): draw a word from each distribution by inverting its cumulative sum.
      vocab_size: words that may be drawn, those below it; needed with `uniforms`.
      temperature: words are drawn from softmax(logits / temperature).
    """

    def some(hidden: Array, labels: Array, uniforms: Array | None) -> WordScores:
        logits = apply(params, method=method, hidden=hidden, rng=rng)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        sampled = None if uniforms is None else draw(logits / temperature, uniforms, vocab_size)
        correct = jnp.argmax(logits, axis=-1) == labels
        return WordScores(log_z - picked, log_z - jnp.mean(logits, axis=-1), log_z, correct, sampled)

    batch, count, _ = hidden.shape
    if params is None:  # the model is being initialised: flax allows no loops around it, and one row tells all
        hidden, labels, uniforms = jax.tree.map(lambda x: x[:1], (hidden, labels, uniforms))
        return some(hidden, labels, uniforms)
    vocabulary = jax.eval_shape(some_logits(apply, method), params, hidden[:, :1]).shape[-1]
    turns = num_chunks(batch * count * vocabulary // num_data_shards(), count)
    if turns == 1:
        return some(hidden, labels, uniforms)
    inputs = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(batch, turns, count // turns, *x.shape[2:]), 0, 1), (hidden, labels, uniforms)
    )
    scores = jax.lax.map(jax.checkpoint(lambda item: some(*item)), inputs)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(batch, count), scores)


def some_logits(apply: Apply, method: str) -> Callable[[Params, Array], Array]:
    return lambda params, hidden: apply(params, method=method, hidden=hidden)


def num_data_shards() -> int:
    """Devices that share a batch."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in ("data", "fsdp"))


def num_chunks(scores: int, count: int) -> int:
    """The fewest equal turns through `count` positions of which none computes more than MAX_SCORES."""
    wanted = -(-scores // MAX_SCORES)
    return next(turns for turns in range(1, count + 1) if count % turns == 0 and (turns >= wanted or turns == count))


def draw(logits: Float[Array, "B M V"], uniforms: Float[Array, "B M"], vocab_size: int) -> Int[Array, "B M"]:
    """The word w with F(w − 1) ≤ u < F(w), F the cumulative distribution of softmax over the first `vocab_size`."""
    cumulative = jnp.cumsum(jax.nn.softmax(jax.lax.stop_gradient(logits[..., :vocab_size])), axis=-1)
    # Against the last sum, not 1: rounding must not lead past the end.
    below = cumulative <= uniforms[..., None] * cumulative[..., -1:]
    return jnp.minimum(jnp.sum(below, axis=-1, dtype=jnp.int32), vocab_size - 1)


def word_loss(
    scores: WordScores, weights: Float[Array, "B M"], label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Float[Array, "B M"]:
    """Loss of each position: (1 − ε)·nll + ε·uniform_nll + z·(log Z)², times its weight.

    Label smoothing after Szegedy et al. 2016 §7, z-loss after the T5 v1.1 code (coefficient 1e-4 there).
    """
    value = scores.nll
    if label_smoothing:
        value = (1.0 - label_smoothing) * value + label_smoothing * scores.uniform_nll
    if z_loss:
        value = value + z_loss * jnp.square(scores.log_z)
    return value * weights


def word_metrics(name: str, scores: WordScores, weights: Float[Array, "B M"]) -> dict[str, Sum]:
    """Cross-entropy and accuracy per predicted word, whatever is minimised, so that runs compare."""
    total = jnp.sum(weights)
    return {
        f"{name}_loss": Sum(jnp.sum(scores.nll * weights), total),
        f"{name}_accuracy": Sum(jnp.sum(scores.correct * weights), total),
    }


def check_word_loss(name: str, config: Any) -> None:
    """Raises UserError if label_smoothing or z_loss of a config makes no sense."""
    if not 0.0 <= config.label_smoothing < 1.0:
        raise UserError(f"{name}: label_smoothing={config.label_smoothing} must lie in [0, 1)")
    if not config.z_loss >= 0.0:
        raise UserError(f"{name}: z_loss={config.z_loss} must not be negative")


# -- classes ----------------------------------------------------------------------------------------------------------


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


def valid_labels(labels: Int[Array, "*N"]) -> tuple[Int[Array, "*N"], Float[Array, "*N"]]:
    """Labels of −1 mark rows that only fill up a batch: (labels safe to index with, weights 0 or 1)."""
    return jnp.maximum(labels, 0), (labels >= 0).astype(jnp.float32)
