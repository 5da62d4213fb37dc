"""Extractive summarisation: a binary decision for each sentence of a document (BertSum, Liu & Lapata 2019 §3.1)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from bertgpt.objectives.core import Objective, classification, encode
from bertgpt.types import MASK_SPEC, TEXT_SPEC, Apply, Batch, BatchSpec, Loss, ObjectiveConfig, Params, Vocab


@dataclasses.dataclass(frozen=True)
class SelectSentences(ObjectiveConfig):
    """Cross-entropy of “in the summary or not”, predicted at the [CLS] before each sentence.

    Batches have `target_mask` [B, S]: 1 where a sentence begins, 2 where a sentence of the summary begins, else 0.
    """

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("sentence_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Texts, and the mask of their sentence starts."""
        return {**TEXT_SPEC, **MASK_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        del vocab

        def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Array:
            return apply(params, method="tag_logits", hidden=encode(apply, params, batch, rng), num_labels=2, rng=rng)

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            mask = batch["target_mask"]
            labels, weights = jnp.maximum(mask - 1, 0), (mask > 0).astype(jnp.float32)
            cross_entropy, accuracy = classification(logits(apply, params, batch, rng), labels, weights)
            return Loss({"cross_entropy": cross_entropy}, {"sentence_accuracy": accuracy})

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return {"probabilities": jax.nn.softmax(logits(apply, params, batch, None))[..., 1]}

        return Objective(lambda key, batch: batch, loss, predict)
