"""What the objectives share: model inputs, token losses computed in chunks, and classification losses.

An objective returns *sums and weights*, never means: microbatches and devices hold different numbers of predicted
positions, so that a mean of means would weight them wrongly. The training loop adds both over the global batch and
divides once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.sharding import BATCH_AXES, num_shards
from bertgpt.types import TEXT_SPEC, Apply, Batch, Inputs, Joint, Loss, Params, Sum, Vocab
from bertgpt.types import Objective as Objective
from bertgpt.types import ScoreKind as ScoreKind
from bertgpt.types import Scores as Scores
from bertgpt.types import Targets as Targets

# A device computes at most this many logits at once: 512 MB in float32.
MAX_LOGITS = 2**27


def inputs_of(batch: Batch) -> Inputs:
    """The fields of a batch that models read; the `decoder_…` fields are read by the decoder of an encoder–decoder."""
    fields = ("input_ids", "segment_ids", "positions", "type_ids", "embeds", "prefix", "bidirectional", "images")
    decoder = None
    if "decoder_ids" in batch:
        decoder = Inputs(batch["decoder_ids"], batch["decoder_segment_ids"], batch["decoder_positions"])
    return Inputs(**{name: batch.get(name) for name in fields}, decoder=decoder)


def flatten_texts(batch: Batch) -> Batch:
    """Reshapes a batch with several texts per example from [B, N, S] to [B·N, S]."""
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in TEXT_SPEC}


def encode(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None = None, method: str = "__call__"
) -> Float[Array, "B S D"]:
    """Hidden states of a batch."""
    return apply(params, inputs_of(batch), method=method, rng=rng)


def gather_positions(x: Float[Array, "B S D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """x[b, positions[b, m]]: only these states reach the vocabulary projection."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


def scaled(term: Sum, factor: float) -> Sum:
    """The term with its sum multiplied by `factor`; its weight stays the same."""
    return Sum(term.sum * factor, term.weight)


def both(a: Loss, b: Loss) -> Loss:
    """The terms and metrics of two losses, whose names differ."""
    return Loss(a.terms | b.terms, a.metrics | b.metrics)


def whole(joint: Joint) -> Callable[[Apply, Params, Batch, Key[Array, ""] | None], Loss]:
    """The loss of a batch that is encoded at once: `Objective.loss` of an objective with a `joint`."""

    def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
        features = joint.features(apply, params, batch, rng)
        return both(joint.loss(features, batch, rng), joint.rest(apply, params, batch, rng))

    return loss


def is_ordinary(ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], vocab: Vocab) -> Bool[Array, "B S"]:
    """True for tokens that are neither padding nor special. [UNK] is special: it stands for no particular word."""
    if not vocab.special:
        return segment_ids > 0
    return (segment_ids > 0) & ~jnp.isin(ids, jnp.asarray(vocab.special))


def count_by_document(which: Bool[Array, "B S"], segment_ids: Int[Array, "B S"]) -> Int[Array, "B D"]:
    """For each sequence, the number of selected tokens in each of its documents 0, 1, … S (0 is padding)."""
    zeros = jnp.zeros(which.shape[1] + 1, jnp.int32)
    return jax.vmap(lambda at, one: zeros.at[at].add(one))(segment_ids, which.astype(jnp.int32))


# -- tokens -----------------------------------------------------------------------------------------------------------


class TokenLosses(NamedTuple):
    """Losses of the tokens at given positions, in nats, and whether the model predicts them."""

    nll: Float[Array, "B M"]
    """−log softmax(logits)[label]"""
    uniform_nll: Float[Array, "B M"]
    """the mean of −log softmax(logits) over the vocabulary: what label smoothing mixes in"""
    log_z: Float[Array, "B M"]
    """logsumexp(logits), which z-loss keeps near 0"""
    correct: Bool[Array, "B M"]
    """whether the label has the highest logit"""
    sampled: Int[Array, "B M"] | None = None
    """a token sampled from softmax(logits), if requested"""


def token_losses(
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
) -> TokenLosses:
    """Losses of labels under the logits [.., V] that the model's `method` computes from hidden states.

    Where B·M·V is large, the positions are processed in chunks whose logits are recomputed in the backward pass, so
    that the logits of all positions never exist at once. Chunks split M rather than B, so that every device works on
    every chunk.

    Args:
      apply: runs the model.
      params: its parameters; None while it is initialised.
      hidden: states at the positions.
      labels: the tokens at the positions.
      method: name of the model's method.
      rng: key for dropout; None turns dropout off.
      uniforms: numbers uniform in [0, 1); if given, one token is sampled from each distribution with them.
      vocab_size: only token ids below it are sampled; required with `uniforms`.
      temperature: tokens are sampled from softmax(logits / temperature).

    Returns:
      The losses of each position, and the sampled tokens if `uniforms` are given.
    """

    def losses_of(hidden: Array, labels: Array, uniforms: Array | None) -> TokenLosses:
        logits = apply(params, method=method, hidden=hidden, rng=rng)
        nll, uniform_nll, log_z = cross_entropies(logits, labels)
        sampled = None if uniforms is None else sample_tokens(logits / temperature, uniforms, vocab_size)
        return TokenLosses(nll, uniform_nll, log_z, is_highest(logits, labels), sampled)

    batch, count, _ = hidden.shape
    if params is None:  # the model is being initialised: flax allows no loop around it, and one example is enough
        hidden, labels, uniforms = jax.tree.map(lambda x: x[:1], (hidden, labels, uniforms))
        return losses_of(hidden, labels, uniforms)
    logits = jax.eval_shape(lambda p, h: apply(p, method=method, hidden=h), params, hidden[:, :1])
    chunks = num_chunks(batch * count * logits.shape[-1] // num_data_shards(), count)
    if chunks == 1:
        return losses_of(hidden, labels, uniforms)
    inputs = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(batch, chunks, count // chunks, *x.shape[2:]), 0, 1),
        (hidden, labels, uniforms),
    )
    losses = jax.lax.map(jax.checkpoint(lambda chunk: losses_of(*chunk)), inputs)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(batch, count), losses)


def is_highest(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """argmax(logits) = label, the first of several highest logits counting.

    `argmax` itself compares one pair after another on CPUs: 640 × 30,522 logits took a twelfth of BERT-mini's step.
    """
    highest = jnp.max(logits, axis=-1, keepdims=True)
    before = jnp.arange(logits.shape[-1]) < labels[..., None]
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (own == highest[..., 0]) & ~jnp.any((logits == highest) & before, axis=-1)


@jax.custom_vjp
def cross_entropies(
    logits: Float[Array, "B M V"], labels: Int[Array, "B M"]
) -> tuple[Float[Array, "B M"], Float[Array, "B M"], Float[Array, "B M"]]:
    """`nll`, `uniform_nll` and `log_z` of `TokenLosses`.

    The gradient of the logits is one expression, softmax · (dnll + duniform_nll + dlog_z) − [v = label] · dnll −
    duniform_nll / V, where derivatives of the single steps would be several arrays as large as the logits, and a
    scatter.
    """
    nll, log_z = nll_and_log_z(logits, labels)
    return nll, log_z - jnp.mean(logits, axis=-1), log_z


def _cross_entropies_forward(logits: Array, labels: Array) -> tuple[tuple[Array, Array, Array], tuple]:
    losses = cross_entropies(logits, labels)
    return losses, (logits, labels, losses[2])


def _cross_entropies_backward(residuals: tuple, slopes: tuple[Array, Array, Array]) -> tuple[Array, None]:
    logits, labels, log_z = residuals
    nll, uniform_nll, z = (slope[..., None] for slope in slopes)
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    probabilities = jnp.exp(logits - log_z[..., None])
    return probabilities * (nll + uniform_nll + z) - jnp.where(chosen, nll, 0) - uniform_nll / logits.shape[-1], None


cross_entropies.defvjp(_cross_entropies_forward, _cross_entropies_backward)


def num_data_shards() -> int:
    """Number of devices that share a batch."""
    return num_shards(jax.sharding.get_abstract_mesh().shape, BATCH_AXES)


def num_chunks(logits: int, count: int) -> int:
    """The smallest number of equal chunks of `count` positions such that none computes more than MAX_LOGITS logits."""
    wanted = -(-logits // MAX_LOGITS)
    return next(n for n in range(1, count + 1) if count % n == 0 and (n >= wanted or n == count))


def sample_tokens(logits: Float[Array, "B M V"], uniforms: Float[Array, "B M"], vocab_size: int) -> Int[Array, "B M"]:
    """Samples by inversion: the token w with F(w − 1) ≤ u < F(w).

    F is the cumulative distribution of the softmax over the first `vocab_size` tokens.
    """
    cumulative = jnp.cumsum(jax.nn.softmax(jax.lax.stop_gradient(logits[..., :vocab_size])), axis=-1)
    # Compared with the last sum, not with 1, so that rounding cannot lead past the end.
    below = cumulative <= uniforms[..., None] * cumulative[..., -1:]
    return jnp.minimum(jnp.sum(below, axis=-1, dtype=jnp.int32), vocab_size - 1)


def regularized_loss(
    losses: TokenLosses, weights: Float[Array, "B M"], label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Float[Array, "B M"]:
    """Loss of each position, times its weight: (1 − ε)·nll + ε·uniform_nll + z·(log Z)².

    Label smoothing follows Szegedy et al. 2016 §7, z-loss the T5 v1.1 code (coefficient 1e-4 there).
    """
    value = losses.nll
    if label_smoothing:
        value = (1.0 - label_smoothing) * value + label_smoothing * losses.uniform_nll
    if z_loss:
        value = value + z_loss * jnp.square(losses.log_z)
    return value * weights


def token_metrics(name: str, losses: TokenLosses, weights: Float[Array, "B M"]) -> dict[str, Sum]:
    """Cross-entropy and accuracy per predicted token, without smoothing or z-loss, so that runs are comparable."""
    total = jnp.sum(weights)
    return {
        f"{name}_loss": Sum(jnp.sum(losses.nll * weights), total),
        f"{name}_accuracy": Sum(jnp.sum(losses.correct * weights), total),
    }


# -- classes ----------------------------------------------------------------------------------------------------------


def nll_and_log_z(
    logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """−log softmax(logits)[label] = log Z − logits[label] in nats, and log Z = logsumexp(logits).

    The cross-entropy of all objectives over tokens and classes.
    """
    # Not optax's softmax_cross_entropy_with_integer_labels: z-loss and label smoothing need log Z as well, which
    # `token_losses` then computes once per chunk, and optax's rounding depends on its version (older ones subtract the
    # maximum first), whereas the logged losses should stay bit-equal from one version to the next.
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0], log_z


def negative_log_likelihood(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """−log softmax(logits)[label], per example and in nats."""
    return nll_and_log_z(logits, labels)[0]


def classification(
    logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"], weights: Float[Array, "*batch"]
) -> tuple[Sum, Sum]:
    """Cross-entropy and accuracy as weighted sums."""
    total = jnp.sum(weights)
    nll = negative_log_likelihood(logits, labels)
    return Sum(jnp.sum(nll * weights), total), Sum(jnp.sum(is_highest(logits, labels) * weights), total)


def valid_labels(labels: Int[Array, "*N"]) -> tuple[Int[Array, "*N"], Float[Array, "*N"]]:
    """Labels that are safe to index with, and weights: 0 for labels of −1 (padding examples of a batch), else 1."""
    return jnp.maximum(labels, 0), (labels >= 0).astype(jnp.float32)
