"""Sequence labelling: a tag for each word, predicted from the state of its first subword (Devlin et al. 2019 §5.3).

Optionally with a conditional random field over the tags of a sentence (Lample et al. 2016).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from bertgpt.objectives.core import Objective, Scores, encode, gather_positions, negative_log_likelihood
from bertgpt.ranges import check_fields
from bertgpt.types import (
    TEXT_SPEC,
    Apply,
    Batch,
    BatchSpec,
    DataConfig,
    Field,
    Loss,
    ObjectiveConfig,
    Params,
    Sum,
    UserError,
    Vocab,
)

# Masks of words that exist, that continue the chain of the previous word, that begin and that end a sentence.
Chains = tuple[Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"]]


@dataclasses.dataclass(frozen=True)
class Tag(ObjectiveConfig):
    """Sequence labelling on the arrays of `tasks.tag_dataset`.

    The loss is −log p in nats per *word*. With the CRF, it is −log p(tags of a sentence) divided by its words, so that
    both are comparable.
    """

    labels: tuple[str, ...] = ()
    """names of the tags, in the order of their ids; (): those of the data"""
    crf: bool = False
    """learn scores of start, end and transitions between tags; else tags are independent given the text"""
    constrained: bool = True
    """predict I-X only after B-X or I-X; with the CRF, other sequences have probability 0 in training as well"""

    def __post_init__(self):
        check_fields(self)
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UserError(f"Tag: labels={self.labels} must be two or more different names")

    def infer(self, data: DataConfig) -> "Tag":
        """With the labels of this data, and unconstrained if they do not follow the BIO scheme.

        Raises:
          UserError: the data has no labels, or others than the objective is configured for.
        """
        labels = data.label_set.values
        if not labels:
            raise UserError(f"Tag: data of {type(data).__name__} has no labels")
        if self.labels not in ((), labels):
            raise UserError(f"Tag: labels={self.labels} are not the data's {labels}")
        return dataclasses.replace(self, labels=labels, constrained=self.constrained and data.label_set.constrained)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("tag_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Texts and, for each word, its first token, chain, edges and tag; see `tasks.tag_dataset`."""
        return {
            **TEXT_SPEC,
            **dict.fromkeys(("word_positions", "chains", "edges", "tags"), Field("int32", ("batch", "word"))),
        }

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; it predicts the best tags, −1 where there is no word."""
        del vocab
        if not self.labels:
            raise UserError("Tag: the labels are not known yet; set objective.labels, or use data that has labels")
        allowed = bio_rules(self.labels) if self.constrained else bio_rules(("",) * len(self.labels))
        rules = tuple(jnp.asarray(array) for array in allowed)

        def scores(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Array:
            # Only the states at first subwords reach the layer.
            words = gather_positions(encode(apply, params, batch, rng), batch["word_positions"])
            return apply(params, method="tag_logits", hidden=words, num_labels=len(self.labels), rng=rng)

        def decode(apply: Apply, params: Params, emissions: Array, chains: Chains) -> Array:
            return apply(params, method="best_tags", emissions=emissions, chains=chains, rules=rules, crf=self.crf)

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            emissions = scores(apply, params, batch, rng)
            chains = chains_of(batch, batch["tags"] >= 0)
            tags, weights = jnp.maximum(batch["tags"], 0), chains[0].astype(jnp.float32)
            total = jnp.sum(weights)
            if self.crf:
                nll = apply(params, method="crf_nll", emissions=emissions, tags=tags, chains=chains, rules=rules)
                value = jnp.sum(nll)
            else:
                value = jnp.sum(negative_log_likelihood(emissions, tags) * weights)
            correct = decode(apply, params, emissions, chains) == tags
            return Loss({"tag_loss": Sum(value, total)}, {"tag_accuracy": Sum(jnp.sum(correct * weights), total)})

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return {"tags": decode(apply, params, scores(apply, params, batch, None), chains_of(batch))}

        def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Scores:
            # Of a CRF too the emissions alone are compared: its few other scores are learnt from the labels.
            there = chains_of(batch)[0]
            return Scores(scores(apply, params, batch, rng), there.astype(jnp.float32))

        return Objective(lambda key, batch: batch, loss, predict, logits=logits)


def chains_of(batch: Batch, known: Bool[Array, "B W"] | bool = True) -> Chains:
    """The masks of a batch's words. Words that are not `known` are skipped.

    Examples that only fill up a batch have no words.
    """
    chains: Int[Array, "B W"] = jnp.where(known, batch["chains"], 0)
    before = jnp.pad(jax.lax.cummax(chains, axis=1), ((0, 0), (1, 0)))[:, :-1]  # chains are numbered in ascending order
    there = chains > 0
    return there, there & (chains == before), (batch["edges"] & 1) > 0, (batch["edges"] & 2) > 0


def bio_rules(labels: tuple[str, ...]) -> tuple[Bool[np.ndarray, " C"], Bool[np.ndarray, "C C"]]:
    """The constraints of BIO tags: I-X only after B-X or I-X.

    Labels that do not begin with “I-” may occur anywhere, so that tags of other schemes are unconstrained.

    Returns:
      Which tags may begin a sentence, and in row i, column j whether tag j may follow tag i.
    """
    inside = np.array([label.startswith("I-") for label in labels])
    kind = np.array([label[2:] if label.startswith(("B-", "I-")) else "" for label in labels])
    return ~inside, ~inside[None, :] | ((kind[:, None] == kind[None, :]) & (kind != "")[:, None])
