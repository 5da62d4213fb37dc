"""Objectives of fine-tuning: one fully connected layer on an encoder, trained end to end (Devlin et al. 2019 §4)."""

import dataclasses

import jax
from jaxtyping import Array, Key

from bertgpt.config import UserError, Vocab
from bertgpt.objectives.core import Apply, Batch, Loss, Objective, Params, classification, encode, valid_labels


@dataclasses.dataclass(frozen=True)
class Classify:
    """Cross-entropy over the labels of a text."""

    num_labels: int = 2
    """number of classes; must equal the data's"""

    def __post_init__(self):
        if self.num_labels < 2:
            raise UserError(f"Classify: num_labels={self.num_labels} must be at least 2")

    def make(self, vocab: Vocab) -> Objective:
        """The three functions of the objective."""

        def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Array:
            hidden = encode(apply, params, batch, rng)
            return apply(params, hidden, batch["segment_ids"], self.num_labels, method="class_logits", rng=rng)

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            labels, weights = valid_labels(batch["label"])
            cross_entropy, accuracy = classification(logits(apply, params, batch, rng), labels, weights)
            return Loss({"cross_entropy": cross_entropy}, {"accuracy": accuracy})

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return {"probabilities": jax.nn.softmax(logits(apply, params, batch, None))}

        return Objective(lambda key, batch: batch, loss, predict)
