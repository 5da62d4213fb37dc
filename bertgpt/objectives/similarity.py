"""Bi-encoders (Reimers & Gurevych 2019): texts are embedded separately and compared by cosine similarity."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bertgpt.objectives.core import Objective, encode, flatten_texts, whole
from bertgpt.ranges import Positive, check_fields
from bertgpt.types import (
    TEXT_SPEC,
    Apply,
    Architecture,
    Batch,
    BatchSpec,
    Field,
    Joint,
    Loss,
    ObjectiveConfig,
    Params,
    Sum,
    Vocab,
)


@dataclasses.dataclass(frozen=True)
class BiEncode(ObjectiveConfig):
    """Learn text embeddings from pairs. Arrays of a batch are [B, 2, S]: example b holds both texts of pair b."""

    loss: Literal["cosine", "negatives"] = "cosine"
    """cosine: (cos(a, b) − label / scale)², for pairs with a similarity score; negatives: cross-entropy of b among all
    second texts of the batch (Henderson et al. 2017 §4.4), for positive pairs"""
    scale: Positive = 1.0
    """largest label of `cosine`; of `negatives`, the factor on cosines in the softmax, 20 in Sentence-BERT's code"""

    def __post_init__(self):
        check_fields(self)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Models with `pool`."""
        return ("encoder", "decoder")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("in_batch_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Two texts for each example."""
        return {field: Field("int32", ("batch", "text", "sequence")) for field in TEXT_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective. With `negatives`, the loss depends on which pairs share a batch."""

        def cosine_loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            a, b = embed_pairs(apply, params, batch, rng)
            target = batch["label"].astype(jnp.float32)
            real = is_real(batch) * ~jnp.isnan(target)
            error = jnp.sum(a * b, axis=-1) - jnp.where(real > 0, target, 0.0) / self.scale
            return Loss({"cosine": Sum(jnp.sum(jnp.square(error) * real), jnp.sum(real))}, {})

        def features(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> dict[str, Array]:
            a, b = embed_pairs(apply, params, batch, rng)
            return {"first": a, "second": b}

        def negatives_loss(pairs: dict[str, Array], batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            del rng
            a, b, real = pairs["first"], pairs["second"], is_real(batch)
            scores = jnp.where(real > 0, self.scale * a @ b.T, -jnp.inf)  # padding examples are not negatives
            diagonal = jnp.where(real > 0, jnp.diagonal(scores), 0.0)
            nll = jnp.where(real > 0, jax.nn.logsumexp(scores, axis=-1) - diagonal, 0.0)
            found = (jnp.argmax(scores, axis=-1) == jnp.arange(len(a))) * real
            return Loss(
                {"negatives": Sum(jnp.sum(nll), jnp.sum(real))},
                {"in_batch_accuracy": Sum(jnp.sum(found), jnp.sum(real))},
            )

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            pairs = features(apply, params, batch, None)
            return pairs | {"cosine": jnp.sum(pairs["first"] * pairs["second"], axis=-1)}

        if self.loss == "cosine":
            return Objective(lambda key, batch: batch, cosine_loss, predict)
        joint = Joint(features, negatives_loss, lambda apply, params, batch, rng: Loss({}, {}))
        return Objective(lambda key, batch: batch, whole(joint), predict, joint=joint)


def is_real(batch: Batch) -> Float[Array, " B"]:
    """1 for each pair, 0 for examples that only fill up the batch."""
    return jnp.any(batch["segment_ids"] > 0, axis=(1, 2)).astype(jnp.float32)


def embed_pairs(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None
) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
    """The pooled states of both texts of each pair, normalised to length 1."""
    texts = flatten_texts(batch)
    hidden = encode(apply, params, texts, rng)
    pooled = apply(params, method="pool", hidden=hidden, segment_ids=texts["segment_ids"], rng=rng)
    pooled = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
    unit = pooled * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(pooled), axis=-1, keepdims=True), 1e-12))
    return unit[0::2], unit[1::2]
