"""Causal and prefix language modelling: predict each token from those before it.

    J(θ) = −Σ_t log p(x_t | x_1 … x_{t−1})

Rows predict inside themselves: the label of place s is the token at s + 1, so a row of S tokens asks for S − 1 words.
Rows of `data.layout="stream"` overlap by one token, so that every token of the text is asked for exactly once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bertgpt.objectives.core import (
    Objective,
    Targets,
    check_word_loss,
    count_by_document,
    encode,
    inputs_of,
    score_words,
    word_loss,
    word_metrics,
)
from bertgpt.objectives.router import router_loss
from bertgpt.types import Apply, Architecture, Batch, Loss, ObjectiveConfig, Params, Sum, UserError, Vocab


@dataclasses.dataclass(frozen=True)
class CausalLM(ObjectiveConfig):
    """Predict every next token (Radford et al. 2019). Whether attention crosses documents, the data's rows decide."""

    label_smoothing: float = 0.0
    """probability mass that the target gives to all words alike"""
    z_loss: float = 0.0
    """factor on (log Z)² of each prediction"""

    architecture: ClassVar[str] = "decoder"
    """the model that it is for"""

    def __post_init__(self):
        check_word_loss("CausalLM", self)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Decoders."""
        return ("decoder",)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("lm_accuracy",))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        del vocab

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            del key
            labels, weights = next_tokens(batch)
            return batch | {"lm_labels": labels, "lm_weights": weights}

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            return decoder_loss(apply, params, batch, rng, WordsAsked("lm", self.label_smoothing, self.z_loss))

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            labels, weights = next_tokens(batch)
            hidden = encode(apply, params, batch)
            scores = score_words(apply, params, hidden, labels, method="lm_logits")
            return {"nll": scores.nll * weights, "weights": weights}

        return Objective(prepare, loss, predict, shifted_targets("lm"), "lm")


@dataclasses.dataclass(frozen=True)
class PrefixLM(ObjectiveConfig):
    """See a random prefix of each document in both directions, predict the rest (Raffel et al. 2020 §3.2.1)."""

    architecture: Literal["decoder", "encoder_decoder"] = "decoder"
    """the model: a decoder whose prefix attends both ways, or an encoder that reads the prefix and a decoder"""
    label_smoothing: float = 0.0
    """probability mass that the target gives to all words alike"""
    z_loss: float = 0.0
    """factor on (log Z)² of each prediction"""
    load_balance: float = 1e-2
    """factor on the load-balancing loss of each Switch layer, if the model has any"""

    def __post_init__(self):
        check_word_loss("PrefixLM", self)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The one that is configured."""
        return (self.architecture,)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("prefix_accuracy",))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective.

        Raises:
          UserError: an encoder–decoder needs a pad token, with which its decoder starts.
        """
        if self.architecture == "encoder_decoder":
            vocab.require("PrefixLM", "pad")

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            split = split_places(key, batch)
            if self.architecture == "decoder":
                labels, weights = next_tokens(batch)
                asked = batch["positions"] + 1 >= split
                return batch | {
                    "bidirectional": (batch["positions"] < split) & (batch["segment_ids"] > 0),
                    "prefix_labels": labels,
                    "prefix_weights": weights * asked,
                }
            rest = (batch["positions"] >= split) & (batch["segment_ids"] > 0)
            places = (batch["positions"] - split) * rest
            return batch | {
                "segment_ids": batch["segment_ids"] * ~rest,
                "decoder_ids": shift_right(batch["input_ids"], vocab.pad, places),
                "decoder_segment_ids": batch["segment_ids"] * rest,
                "decoder_positions": places,
                "prefix_labels": batch["input_ids"],
                "prefix_weights": rest.astype(jnp.float32),
            }

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            of_form = decoder_loss if self.architecture == "decoder" else encoder_decoder_loss
            return of_form(
                apply, params, batch, rng, WordsAsked("prefix", self.label_smoothing, self.z_loss, self.load_balance)
            )

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            raise UserError("a prefix language model answers no single texts; continue one with `bertgpt generate`")

        def targets(raw: Batch, prepared: Batch) -> Targets:
            if self.architecture == "decoder":
                return shifted_targets("prefix")(raw, prepared)
            left = jnp.roll(raw["input_ids"], 1, axis=1)
            return Targets(left, prepared["prefix_labels"], prepared["prefix_weights"])

        return Objective(prepare, loss, predict, targets, target_metric="prefix")


def next_tokens(batch: Batch) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    """(token after each place, 1 where it belongs to the same document of the row, else 0)."""
    labels = jnp.roll(batch["input_ids"], -1, axis=1)
    segments, last = batch["segment_ids"], jnp.arange(labels.shape[1]) == labels.shape[1] - 1
    same = (segments > 0) & (segments == jnp.roll(segments, -1, axis=1)) & ~last
    return labels, same.astype(jnp.float32)


def shifted_targets(name: str) -> Callable[[Batch, Batch], Targets]:
    """`targets` of objectives whose label at a place is the token after it."""

    def targets(raw: Batch, prepared: Batch) -> Targets:
        return Targets(raw["input_ids"], prepared[f"{name}_labels"], prepared[f"{name}_weights"])

    return targets


def split_places(key: Key[Array, ""], batch: Batch) -> Int[Array, "B S"]:
    """For each token, where its document's prefix ends: uniform in 1 … n − 1 for a document of n tokens.

    A document of one token has a prefix of one and nothing to predict.
    """
    segments = batch["segment_ids"]
    lengths = count_by_document(segments >= 0, segments)
    uniforms = jax.random.uniform(key, lengths.shape)
    split = 1 + jnp.floor(uniforms * jnp.maximum(lengths - 1, 1)).astype(jnp.int32)
    return jnp.take_along_axis(jnp.minimum(split, jnp.maximum(lengths - 1, 1)), segments, axis=1)


def shift_right(ids: Int[Array, "B S"], start_id: int, positions: Int[Array, "B S"] | None = None) -> Int[Array, "B S"]:
    """The decoder's input for these outputs: each example moved one place to the right, after `start_id`.

    `positions` are places within each example; None: a row is one example.
    """
    first = jnp.arange(ids.shape[1])[None] == 0 if positions is None else positions == 0
    return jnp.where(first, start_id, jnp.roll(ids, 1, axis=1))


class WordsAsked(NamedTuple):
    """The words that a term of the loss asks for, and what it minimises of each; see `word_loss`."""

    name: str
    """of the term, and of its arrays `<name>_labels` and `<name>_weights`"""
    label_smoothing: float
    z_loss: float
    load_balance: float = 0.0
    """factor on the load-balancing loss of each Switch layer"""


def encoder_decoder_states(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Hidden states of an encoder–decoder's decoder, and the auxiliary outputs of its Switch layers, {} without any."""
    return apply(params, inputs_of(batch), rng=rng, auxiliary="router")


def decoder_loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None, asked: WordsAsked) -> Loss:
    """Loss of the words asked for, from a decoder's states at its last places."""
    hidden = encode(apply, params, batch, rng)[:, -batch[f"{asked.name}_labels"].shape[1] :]
    return loss_of_words(apply, params, hidden, batch, rng, asked)


def encoder_decoder_loss(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None, asked: WordsAsked
) -> Loss:
    """The same from an encoder–decoder's decoder, with the losses of its Switch layers, if it has any."""
    hidden, auxiliary = encoder_decoder_states(apply, params, batch, rng)
    value = loss_of_words(apply, params, hidden, batch, rng, asked)
    router = router_loss(auxiliary, asked.load_balance)
    return Loss(value.terms | router.terms, value.metrics | router.metrics)


def loss_of_words(
    apply: Apply,
    params: Params,
    hidden: Float[Array, "B T D"],
    batch: Batch,
    rng: Key[Array, ""] | None,
    asked: WordsAsked,
) -> Loss:
    """Mean loss of the labels, and their metrics; where `<name>_words` marks some as words, theirs as `word_*` too."""
    name = asked.name
    labels, weights = batch[f"{name}_labels"], batch[f"{name}_weights"]
    scores = score_words(apply, params, hidden, labels, method="lm_logits", rng=rng)
    value = jnp.sum(word_loss(scores, weights, asked.label_smoothing, asked.z_loss))
    metrics = word_metrics(name, scores, weights)
    if f"{name}_words" in batch:
        metrics |= word_metrics("word", scores, batch[f"{name}_words"])
    return Loss({name: Sum(value, jnp.sum(weights))}, metrics)
