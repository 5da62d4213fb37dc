"""The losses of distillation, each a sum over examples and its weight: formulas of `Distill`."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bertgpt.objectives.core import ScoreKind, Scores
from bertgpt.types import Sum, UserError


def logits_loss(scores: Scores, teacher: Float[Array, "*N C"], temperature: float) -> Sum:
    """T² KL(p_T ‖ p_S) of the distributions at temperature T, in nats, over everything that has logits.

    Logits of independent labels are those of Bernoulli distributions, whose divergences are averaged over the labels;
    of numbers it is the squared error.

    Args:
      scores: the student's.
      teacher: the teacher's logits.
      temperature: T.

    Returns:
      The sum and the number of distributions.
    """
    value = DIVERGENCES[scores.kind](scores.logits, jax.lax.stop_gradient(teacher), temperature)
    weights = scores.weights.astype(value.dtype)
    return Sum(jnp.sum(value * weights), jnp.sum(weights))


def softmax_divergence(student: Float[Array, "*N C"], teacher: Float[Array, "*N C"], temperature: float) -> Array:
    """T² Σ_c p_T(c) (log p_T(c) − log p_S(c)), for each distribution."""
    log_s, log_t = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)


def sigmoid_divergence(student: Float[Array, "*N C"], teacher: Float[Array, "*N C"], temperature: float) -> Array:
    """The mean over labels of the divergences of yes and no, whose logits are z and 0."""
    both = (jnp.stack([logits, jnp.zeros_like(logits)], axis=-1) for logits in (student, teacher))
    return jnp.mean(softmax_divergence(*both, temperature), axis=-1)


def squared_error(student: Float[Array, "*N C"], teacher: Float[Array, "*N C"], temperature: float) -> Array:
    """The mean squared difference; numbers have no temperature."""
    del temperature
    return jnp.mean(jnp.square(student - teacher), axis=-1)


DIVERGENCES: dict[ScoreKind, Callable[[Array, Array, float], Array]] = {
    "softmax": softmax_divergence,
    "sigmoid": sigmoid_divergence,
    "number": squared_error,
}


def agreement(scores: Scores, teacher: Float[Array, "*N C"]) -> Sum:
    """How often student and teacher prefer the same class."""
    same = jnp.argmax(scores.logits, axis=-1) == jnp.argmax(teacher, axis=-1)
    return Sum(jnp.sum(same * scores.weights), jnp.sum(scores.weights))


def hidden_loss(
    student: Float[Array, "B P S D"],
    teacher: Float[Array, "B P S D"],
    real: Bool[Array, "B S"],
    kind: Literal["mse", "cosine"],
) -> Sum:
    """Σ over pairs of layers of the mean over tokens of the squared error per component, or of 1 − cosine.

    Args:
      student: states of the student's layers.
      teacher: states of the teacher's layers.
      real: whether each token is not padding.
      kind: which of the two.

    Returns:
      The sum over tokens and the number of tokens.
    """
    student = student.astype(jnp.promote_types(student.dtype, jnp.float32))
    teacher = jax.lax.stop_gradient(teacher).astype(student.dtype)
    if kind == "mse":
        value = jnp.mean(jnp.square(student - teacher), axis=-1)
    else:
        # Padding may be all 0, where the gradient of a norm is not finite.
        norms = [jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), 1e-24)) for x in (student, teacher)]
        value = 1.0 - jnp.sum(student * teacher, axis=-1) / (norms[0] * norms[1])
    weights = real.astype(student.dtype)
    return Sum(jnp.sum(value * weights[:, None]), jnp.sum(weights))


def attention_loss(
    student: Float[Array, "B P 3 H S K"],
    teacher: Float[Array, "B P 3 A S J"],
    segment_ids: Int[Array, "B S"],
    kind: Literal["minilm", "scores"],
    relation_heads: int | None = None,
) -> Sum:
    """How attention differs, averaged over heads and summed over pairs of layers.

    Args:
      student: queries, keys and values of the student's layers.
      teacher: those of the teacher's.
      segment_ids: documents of the tokens; only pairs of tokens of the same document count.
      kind: "minilm": KL(R_T ‖ R_S) of the distributions over keys, of queries and keys plus of values and values, for
        each token. "scores": squared differences of QKᵀ / √d, for each pair of tokens.
      relation_heads: cut the heads of both anew into this many.

    Returns:
      The sum over tokens (pairs of tokens) and their number.

    Raises:
      UserError: the numbers of heads differ, or cannot be cut so.
    """
    student, teacher = (
        with_heads(x.astype(jnp.promote_types(x.dtype, jnp.float32)), relation_heads)
        for x in (student, jax.lax.stop_gradient(teacher))
    )
    if student.shape[3] != teacher.shape[3]:
        raise UserError(
            f"Distill: attention_weight: the student has {student.shape[3]} heads and the teacher {teacher.shape[3]};"
            " relation_heads cuts both into as many"
        )
    together = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, :, None]
    seen = together[:, None, None]

    def scores(x: Array, a: int, b: int) -> Array:
        return jnp.einsum("bphsk,bphtk->bphst", x[:, :, a], x[:, :, b]) * x.shape[-1] ** -0.5

    if kind == "scores":
        value = jnp.where(seen, jnp.square(scores(student, 0, 1) - scores(teacher, 0, 1)), 0.0)
        return Sum(jnp.sum(jnp.mean(value, axis=2)), jnp.sum(together.astype(value.dtype)))
    real = (segment_ids > 0).astype(student.dtype)
    total = jnp.zeros((), student.dtype)
    for a, b in ((0, 1), (2, 2)):
        log_s, log_t = (
            jax.nn.log_softmax(jnp.where(seen, scores(x, a, b), jnp.finfo(x.dtype).min)) for x in (student, teacher)
        )
        divergence = jnp.sum(jnp.where(seen, jnp.exp(log_t) * (log_t - log_s), 0.0), axis=-1)
        total += jnp.sum(jnp.mean(divergence, axis=2) * real[:, None])
    return Sum(total, jnp.sum(real))


def with_heads(x: Float[Array, "B P 3 H S K"], count: int | None) -> Float[Array, "B P 3 A S J"]:
    """The same numbers in `count` heads; None: as they are."""
    if count is None:
        return x
    width = x.shape[3] * x.shape[5]
    if width % count:
        raise UserError(f"Distill: relation_heads={count} does not divide the width {width} of all heads together")
    joined = jnp.swapaxes(x, 3, 4).reshape(*x.shape[:3], x.shape[4], count, width // count)
    return jnp.swapaxes(joined, 3, 4)
