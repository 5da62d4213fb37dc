"""Linear-chain conditional random field (Lafferty et al. 2001) on the scores of an encoder (Lample et al. 2016 §2.1).

    score(y) = Σₜ u[t, yₜ] + Σ_{t continues t − 1} T[yₜ₋₁, yₜ]      p(y) = exp(score(y)) / Σ_y′ exp(score(y′))

A row holds one chain or several, one after another: T counts only where a word continues the chain of the word before
it, and then chains do not touch. The scores of starting and ending with a tag are part of u (see `unary`). Words that
are not there (`mask` False) are passed over.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Score of what is forbidden. exp of it is 0 exactly, and unlike −∞ it has gradients.
FORBIDDEN = -1e4


def unary(
    emissions: Float[Array, "B W C"],
    start: Float[Array, " C"],
    end: Float[Array, " C"],
    first: Bool[Array, "B W"],
    last: Bool[Array, "B W"],
) -> Float[Array, "B W C"]:
    """Scores of each word's tags alone: the encoder's, and those of starting and ending there. At least float32."""
    scores = emissions.astype(jnp.promote_types(emissions.dtype, jnp.float32))
    return scores + first[..., None] * start + last[..., None] * end


def forbid(
    start: Float[Array, " C"], transitions: Float[Array, "C C"], rules: tuple[Bool[Array, " C"], Bool[Array, "C C"]]
) -> tuple[Float[Array, " C"], Float[Array, "C C"]]:
    """(start, transitions) under rules: the tags that may begin a chain, and [i, j]: tag j may follow tag i."""
    return jnp.where(rules[0], start, FORBIDDEN), jnp.where(rules[1], transitions, FORBIDDEN)


def log_partition(
    scores: Float[Array, "B W C"],
    transitions: Float[Array, "C C"],
    mask: Bool[Array, "B W"],
    joined: Bool[Array, "B W"],
) -> Float[Array, " B"]:
    """log Σ_y exp(score(y)), by the forward algorithm: αₜ[j] = u[t, j] + log Σᵢ exp(αₜ₋₁[i] + T[i, j]).

    Args:
      scores: u, from `unary`.
      transitions: T, score of tag j after tag i.
      mask: the word is there.
      joined: the word continues the chain of the last word that is there before it.
    """

    def step(alpha: Array, item: tuple) -> tuple[Array, None]:
        u, real, joins = item
        within = jax.nn.logsumexp(alpha[:, :, None] + transitions, axis=1)
        apart = jax.nn.logsumexp(alpha, axis=1, keepdims=True)  # any tag before: Z of two chains is the product
        moved = jnp.where(joins[:, None], within, apart) + u
        return jnp.where(real[:, None], moved, alpha), None

    # Before the first word there is one state, the only one that has a score.
    nothing = jnp.full_like(scores[:, 0], -jnp.inf).at[:, 0].set(0.0)
    alpha, _ = jax.lax.scan(step, nothing, _by_word(scores, mask, joined))
    return jax.nn.logsumexp(alpha, axis=1)


def path_score(
    scores: Float[Array, "B W C"],
    transitions: Float[Array, "C C"],
    mask: Bool[Array, "B W"],
    joined: Bool[Array, "B W"],
    tags: Int[Array, "B W"],
) -> Float[Array, " B"]:
    """score(y) of one tag for each word, in one pass; arguments as of `log_partition`, tags from 0 where `mask`."""

    def step(carry: tuple, item: tuple) -> tuple[tuple, None]:
        before, total = carry
        u, real, joins, tag = item
        gain = jnp.take_along_axis(u, tag[:, None], axis=1)[:, 0] + joins * transitions[before, tag]
        return (jnp.where(real, tag, before), total + real * gain), None

    tags = jnp.maximum(tags, 0)
    nothing = jnp.zeros_like(tags[:, 0]), jnp.zeros_like(scores[:, 0, 0])
    (_, total), _ = jax.lax.scan(step, nothing, (*_by_word(scores, mask, joined), tags.T))
    return total


def negative_log_likelihood(
    scores: Float[Array, "B W C"],
    transitions: Float[Array, "C C"],
    mask: Bool[Array, "B W"],
    joined: Bool[Array, "B W"],
    tags: Int[Array, "B W"],
) -> Float[Array, " B"]:
    """−log p(tags), in nats, summed over the chains of a row; arguments as of `path_score`."""
    return log_partition(scores, transitions, mask, joined) - path_score(scores, transitions, mask, joined, tags)


def viterbi(
    scores: Float[Array, "B W C"],
    transitions: Float[Array, "C C"],
    mask: Bool[Array, "B W"],
    joined: Bool[Array, "B W"],
) -> tuple[Int[Array, "B W"], Float[Array, " B"]]:
    """(the tags y with the highest score, −1 where `mask` is False; that score); arguments as of `log_partition`."""
    same = jnp.arange(scores.shape[-1], dtype=jnp.int32)

    def forward(best: Array, item: tuple) -> tuple[Array, Array]:
        u, real, joins = item
        paths = best[:, :, None] + jnp.where(joins[:, None, None], transitions, 0.0)
        back = jnp.where(real[:, None], jnp.argmax(paths, axis=1).astype(jnp.int32), same)
        return jnp.where(real[:, None], jnp.max(paths, axis=1) + u, best), back

    def backward(tag: Array, item: tuple) -> tuple[Array, Array]:
        back, real = item
        before = jnp.take_along_axis(back, tag[:, None], axis=1)[:, 0]
        return before, jnp.where(real, tag, -1)

    nothing = jnp.full_like(scores[:, 0], -jnp.inf).at[:, 0].set(0.0)
    best, back = jax.lax.scan(forward, nothing, _by_word(scores, mask, joined))
    last = jnp.argmax(best, axis=1).astype(jnp.int32)
    _, tags = jax.lax.scan(backward, last, (back, mask.T), reverse=True)
    return tags.T, jnp.max(best, axis=1)


def _by_word(scores: Array, mask: Array, joined: Array) -> tuple[Array, Array, Array]:
    """With the axis of words first, as scan wants it."""
    return jnp.swapaxes(scores, 0, 1), mask.T, joined.T
