"""CLIP's contrastive loss (Radford et al. 2021 Fig. 3): each image among the texts of a batch, each text among images.

logits = exp(s) · I Tᵀ, of unit vectors I and T;   loss = ½ (CE of every row + CE of every column), labels i = j
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bertgpt.objectives.core import Objective, inputs_of, whole
from bertgpt.ranges import Positive, check_fields
from bertgpt.sharding import constrain
from bertgpt.types import (
    IMAGE_SPEC,
    PAIR_SPEC,
    TEXT_SPEC,
    Apply,
    Batch,
    BatchSpec,
    Joint,
    Loss,
    ObjectiveConfig,
    Params,
    Sum,
    Vocab,
)


@dataclasses.dataclass(frozen=True)
class Contrast(ObjectiveConfig):
    """Learn images and texts together from pairs that belong to each other.

    All other texts of the global batch are the negatives of an image, and all other images those of a text. Pairs of
    the same image or of the same text are left out of each other's negatives; the paper, whose pairs are nearly all
    different, does not do this. Without such pairs in a batch the loss is the paper's.
    """

    max_scale: Positive = 100.0
    """largest factor exp(s) on cosines (§2.5)"""

    def __post_init__(self):
        check_fields(self)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("in_batch_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """An image and a text for each example, and which are the same."""
        return {**TEXT_SPEC, **IMAGE_SPEC, **PAIR_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective. The loss depends on which pairs share a batch."""

        def features(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> dict[str, Array]:
            found = vectors(apply, params, batch, rng)
            # One row for each example, as of all features: the loss takes their mean, whose gradient each gets a share
            # of, so that the gradients of all rows add up to that of s, whatever the microbatches.
            s = apply(params, method="log_scale")
            return found | {"log_scale": jnp.broadcast_to(s, (len(found["image"]),))}

        def loss(pairs: dict[str, Array], batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            del rng
            scale = jnp.exp(bounded(jnp.mean(pairs["log_scale"]), math.log(self.max_scale)))
            logits = constrain(scale * pairs["image"] @ pairs["text"].T, ("batch", None))
            real = is_real(batch)
            own, others = jnp.diagonal(logits), jnp.where(is_negative(batch), logits, -jnp.inf)
            among_texts, among_images = (jax.nn.logsumexp(others, axis=axis) for axis in (1, 0))
            best = (jnp.max(jnp.where(jnp.eye(len(own), dtype=bool), -jnp.inf, others), axis=axis) for axis in (1, 0))
            count = jnp.sum(real)
            nll = jnp.sum(jnp.where(real, (among_texts + among_images) / 2 - own, 0.0))
            found = sum(jnp.sum((own > other) * real) for other in best) / 2
            return Loss(
                {"contrast": Sum(nll, count.astype(jnp.float32))},
                {
                    "in_batch_accuracy": Sum(found, count.astype(jnp.float32)),
                    "logit_scale": Sum(scale, jnp.ones(())),
                },
            )

        joint = Joint(features, loss, lambda apply, params, batch, rng: Loss({}, {}))
        return Objective(lambda key, batch: batch, whole(joint), lambda a, p, b: vectors(a, p, b, None), joint=joint)


def vectors(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> dict[str, Array]:
    """The unit vectors of images and texts, [B, E] each."""
    inputs = inputs_of(batch)
    return {name: apply(params, inputs, method=f"{name}_features", rng=rng) for name in ("image", "text")}


def is_real(batch: Batch) -> Bool[Array, " B"]:
    """Whether each example is a pair; others only fill up the batch."""
    return jnp.any(batch["segment_ids"] > 0, axis=1)


def is_negative(batch: Batch) -> Bool[Array, "B B"]:
    """Whether text j counts in the softmax of image i, and image i in that of text j: the own one and the negatives.

    The diagonal is always True, so that no softmax is empty.
    """
    real = is_real(batch)
    same = jnp.zeros((len(real),) * 2, bool)
    for name in PAIR_SPEC:
        same |= batch[name][:, None] == batch[name]
    return jnp.eye(len(real), dtype=bool) | (~same & real & real[:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def bounded(s: Float[Array, ""], highest: float) -> Float[Array, ""]:
    """min(s, highest). At the bound, the gradient is that of s where descent leads back, and 0 where it leads on.

    The released code cuts s itself after each step, from where it can fall again; the gradient of a plain minimum would
    be 0 for ever once a step has passed the bound.
    """
    return jnp.minimum(s, highest)


def _forward(s: Float[Array, ""], highest: float) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    return jnp.minimum(s, highest), s >= highest


def _backward(highest: float, at_bound: Bool[Array, ""], gradient: Float[Array, ""]) -> tuple[Float[Array, ""]]:
    del highest
    return (jnp.where(at_bound & (gradient < 0), 0.0, gradient),)


bounded.defvjp(_forward, _backward)
