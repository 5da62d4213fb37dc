"""Causal and prefix language modelling: predict each token from those before it.

    J(θ) = −Σ_t log p(x_t | x_1 … x_{t−1})

The label at position s is the token at s + 1, so that a sequence of S tokens has S − 1 targets. The sequences of
`data.layout="stream"` overlap by one token, so that every token of the text is a target exactly once.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bertgpt.objectives.core import (
    Objective,
    Targets,
    count_by_document,
    encode,
    inputs_of,
    regularized_loss,
    token_losses,
    token_metrics,
)
from bertgpt.objectives.router import router_loss
from bertgpt.ranges import NonNegative, Rate, check_fields
from bertgpt.types import Apply, Architecture, Batch, Loss, ObjectiveConfig, Params, Sum, UserError, Vocab


@dataclasses.dataclass(frozen=True)
class CausalLM(ObjectiveConfig):
    """Predict every next token (Radford et al. 2019).

    The segment ids of the data determine whether attention crosses document boundaries.
    """

    label_smoothing: Rate = 0.0
    """probability mass that the target distribution spreads evenly over the vocabulary"""
    z_loss: NonNegative = 0.0
    """factor on (log Z)² of each prediction"""

    def __post_init__(self):
        check_fields(self)

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
            return decoder_loss(apply, params, batch, rng, TokenLossConfig("lm", self.label_smoothing, self.z_loss))

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            labels, weights = next_tokens(batch)
            hidden = encode(apply, params, batch)
            losses = token_losses(apply, params, hidden, labels, method="lm_logits")
            return {"nll": losses.nll * weights, "weights": weights}

        return Objective(prepare, loss, predict, shifted_targets("lm"), "lm")


@dataclasses.dataclass(frozen=True)
class PrefixLM(ObjectiveConfig):
    """Read a random prefix of each document in both directions and predict the rest (Raffel et al. 2020 §3.2.1)."""

    architecture: Literal["decoder", "encoder_decoder"] = "decoder"
    """a decoder whose prefix attends in both directions, or an encoder for the prefix and a decoder for the rest"""
    label_smoothing: Rate = 0.0
    """probability mass that the target distribution spreads evenly over the vocabulary"""
    z_loss: NonNegative = 0.0
    """factor on (log Z)² of each prediction"""
    load_balance: NonNegative = 1e-2
    """factor on the load-balancing loss of each Switch layer, if the model has any"""

    def __post_init__(self):
        check_fields(self)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The configured one."""
        return (self.architecture,)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("prefix_accuracy",))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective.

        Raises:
          UserError: the tokenizer has no pad token, with which the decoder of an encoder–decoder starts.
        """
        if self.architecture == "encoder_decoder":
            vocab.require("PrefixLM", "pad")

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            prefix = prefix_lengths(key, batch)
            if self.architecture == "decoder":
                labels, weights = next_tokens(batch)
                predicted = batch["positions"] + 1 >= prefix
                return batch | {
                    "bidirectional": (batch["positions"] < prefix) & (batch["segment_ids"] > 0),
                    "prefix_labels": labels,
                    "prefix_weights": weights * predicted,
                }
            rest = (batch["positions"] >= prefix) & (batch["segment_ids"] > 0)
            positions = (batch["positions"] - prefix) * rest
            return batch | {
                "segment_ids": batch["segment_ids"] * ~rest,
                "decoder_ids": shift_right(batch["input_ids"], vocab.pad, positions),
                "decoder_segment_ids": batch["segment_ids"] * rest,
                "decoder_positions": positions,
                "prefix_labels": batch["input_ids"],
                "prefix_weights": rest.astype(jnp.float32),
            }

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            loss_fn = decoder_loss if self.architecture == "decoder" else encoder_decoder_loss
            return loss_fn(
                apply,
                params,
                batch,
                rng,
                TokenLossConfig("prefix", self.label_smoothing, self.z_loss, self.load_balance),
            )

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            raise UserError("PrefixLM has no predictions for single texts; use `bertgpt generate` to continue a text")

        def targets(raw: Batch, prepared: Batch) -> Targets:
            if self.architecture == "decoder":
                return shifted_targets("prefix")(raw, prepared)
            left = jnp.roll(raw["input_ids"], 1, axis=1)
            return Targets(left, prepared["prefix_labels"], prepared["prefix_weights"])

        return Objective(prepare, loss, predict, targets, target_metric="prefix")


def next_tokens(batch: Batch) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    """The token after each position, and its weight: 1 if it belongs to the same document, else 0."""
    labels = jnp.roll(batch["input_ids"], -1, axis=1)
    segments, last = batch["segment_ids"], jnp.arange(labels.shape[1]) == labels.shape[1] - 1
    same = (segments > 0) & (segments == jnp.roll(segments, -1, axis=1)) & ~last
    return labels, same.astype(jnp.float32)


def shifted_targets(name: str) -> Callable[[Batch, Batch], Targets]:
    """`Objective.targets` for objectives whose label at a position is the token after it."""

    def targets(raw: Batch, prepared: Batch) -> Targets:
        return Targets(raw["input_ids"], prepared[f"{name}_labels"], prepared[f"{name}_weights"])

    return targets


def prefix_lengths(key: Key[Array, ""], batch: Batch) -> Int[Array, "B S"]:
    """For each token, the length of its document's prefix: uniform in 1 … n − 1 for a document of n tokens.

    A document of one token has a prefix of one token and nothing to predict.
    """
    segments = batch["segment_ids"]
    lengths = count_by_document(segments >= 0, segments)
    uniforms = jax.random.uniform(key, lengths.shape)
    prefix = 1 + jnp.floor(uniforms * jnp.maximum(lengths - 1, 1)).astype(jnp.int32)
    return jnp.take_along_axis(jnp.minimum(prefix, jnp.maximum(lengths - 1, 1)), segments, axis=1)


def shift_right(ids: Int[Array, "B S"], start_id: int, positions: Int[Array, "B S"] | None = None) -> Int[Array, "B S"]:
    """The decoder input for these outputs: each example shifted one position to the right, after `start_id`.

    `positions` are the positions within each example of a packed sequence; None: a sequence is one example.
    """
    first = jnp.arange(ids.shape[1])[None] == 0 if positions is None else positions == 0
    return jnp.where(first, start_id, jnp.roll(ids, 1, axis=1))


class TokenLossConfig(NamedTuple):
    """A loss term over tokens and its settings."""

    name: str
    """name of the term; the batch holds its `<name>_labels` and `<name>_weights`"""
    label_smoothing: float
    """see `regularized_loss`"""
    z_loss: float
    """see `regularized_loss`"""
    load_balance: float = 0.0
    """factor on the load-balancing loss of each Switch layer"""


def encoder_decoder_states(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None
) -> tuple[Float[Array, "B T D"], Params]:
    """The decoder's hidden states, and the auxiliary outputs of Switch layers, {} if the model has none."""
    return apply(params, inputs_of(batch), rng=rng, auxiliary="router")


def decoder_loss(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None, config: TokenLossConfig
) -> Loss:
    """Token losses of a decoder. The labels belong to its last positions."""
    hidden = encode(apply, params, batch, rng)[:, -batch[f"{config.name}_labels"].shape[1] :]
    return lm_loss(apply, params, hidden, batch, rng, config)


def encoder_decoder_loss(
    apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None, config: TokenLossConfig
) -> Loss:
    """Token losses of an encoder–decoder, and the load-balancing losses of its Switch layers, if it has any."""
    hidden, auxiliary = encoder_decoder_states(apply, params, batch, rng)
    value = lm_loss(apply, params, hidden, batch, rng, config)
    router = router_loss(auxiliary, config.load_balance)
    return Loss(value.terms | router.terms, value.metrics | router.metrics)


def lm_loss(
    apply: Apply,
    params: Params,
    hidden: Float[Array, "B T D"],
    batch: Batch,
    rng: Key[Array, ""] | None,
    config: TokenLossConfig,
) -> Loss:
    """Loss and metrics of the labels, from hidden states at their positions.

    If the batch has `<name>_words`, the weights of labels that are tokens of the text, their metrics are added as
    `word_loss` and `word_accuracy`.
    """
    name = config.name
    labels, weights = batch[f"{name}_labels"], batch[f"{name}_weights"]
    losses = token_losses(apply, params, hidden, labels, method="lm_logits", rng=rng)
    value = jnp.sum(regularized_loss(losses, weights, config.label_smoothing, config.z_loss))
    metrics = token_metrics(name, losses, weights)
    if f"{name}_words" in batch:
        metrics |= token_metrics("word", losses, batch[f"{name}_words"])
    return Loss({name: Sum(value, jnp.sum(weights))}, metrics)
