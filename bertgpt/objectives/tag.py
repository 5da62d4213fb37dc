"""A tag for each word: one fully connected layer on the state of its first piece (Devlin et al. 2019 §5.3), with or
without a conditional random field over the tags of a sentence (Lample et al. 2016).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from bertgpt.objectives.core import Objective, encode, gather_positions, negative_log_likelihood
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

# Which words there are, which continue the chain of the word before them, begin a sentence, and end one.
Chains = tuple[Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"], Bool[Array, "B W"]]


@dataclasses.dataclass(frozen=True)
class Tag(ObjectiveConfig):
    """Sequence labelling on the arrays of `tasks.tag_dataset`.

    The loss is −log p in nats per *word*, with the CRF too, where that is −log p(tags of a sentence) over its words: so
    the two compare.
    """

    labels: tuple[str, ...] = ()
    """names of the tags, in the order of their numbers; (): the data's"""
    crf: bool = False
    """learn scores for the start, the end and each succession of tags; else tags are independent given the text"""
    constrained: bool = True
    """never answer I-X but after B-X or I-X; with the CRF such tags have no probability in training either"""

    def __post_init__(self):
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UserError(f"Tag: labels={self.labels} must be two or more different ones")

    def infer(self, data: DataConfig) -> "Tag":
        """With the labels of this data, and without rules if its tags are plain.

        Raises:
          UserError: it has none, or others than the objective was given.
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
        """Texts, and of each word its first token, chain, edges and tag; see `tasks.tag_dataset`."""
        return {
            **TEXT_SPEC,
            **dict.fromkeys(("word_positions", "chains", "edges", "tags"), Field("int32", ("batch", "word"))),
        }

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; its answer is the best tags, −1 where there is no word."""
        del vocab
        if not self.labels:
            raise UserError("Tag: labels=() are not known yet; give objective.labels, or data that has labels")
        allowed = bio_rules(self.labels) if self.constrained else bio_rules(("",) * len(self.labels))
        rules = tuple(jnp.asarray(array) for array in allowed)

        def scores(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Array:
            # Only the states of words to decide reach the layer.
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

        return Objective(lambda key, batch: batch, loss, predict)


def chains_of(batch: Batch, known: Bool[Array, "B W"] | bool = True) -> Chains:
    """What the arrays of a batch say of its words, or of those that are `known`: the others are passed over.

    Rows that fill up a batch have no words.
    """
    chains: Int[Array, "B W"] = jnp.where(known, batch["chains"], 0)
    before = jnp.pad(jax.lax.cummax(chains, axis=1), ((0, 0), (1, 0)))[:, :-1]  # they are numbered in order
    there = chains > 0
    return there, there & (chains == before), (batch["edges"] & 1) > 0, (batch["edges"] & 2) > 0


def bio_rules(labels: tuple[str, ...]) -> tuple[Bool[np.ndarray, " C"], Bool[np.ndarray, "C C"]]:
    """(tags that may begin a sentence, [i, j]: tag j may follow tag i) in BIO: I-X only after B-X or I-X.

    Labels that do not begin with “I-” may stand anywhere, so that tags of other schemes know no rules.
    """
    inside = np.array([label.startswith("I-") for label in labels])
    kind = np.array([label[2:] if label.startswith(("B-", "I-")) else "" for label in labels])
    return ~inside, ~inside[None, :] | ((kind[:, None] == kind[None, :]) & (kind != "")[:, None])
