"""Text to text: generate the target for a source, with an encoder–decoder or a decoder alone.

    J(θ) = −Σ_t log p(y_t | y_1 … y_{t−1}, x)

The loss covers the tokens of the target, including its end token, but none of the source. The decoder reads the true
preceding tokens (teacher forcing). Several pairs may be packed into a sequence: both sides have the same segment ids.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from bertgpt.objectives.core import Objective, Targets, encode, token_losses
from bertgpt.objectives.corruption import running_max
from bertgpt.objectives.lm import (
    TokenLossConfig,
    decoder_loss,
    encoder_decoder_loss,
    encoder_decoder_states,
    next_tokens,
    shift_right,
    shifted_targets,
)
from bertgpt.objectives.span import is_first
from bertgpt.ranges import NonNegative, Rate, check_fields
from bertgpt.types import (
    MASK_SPEC,
    TARGET_SPEC,
    TEXT_SPEC,
    Apply,
    Architecture,
    Batch,
    BatchSpec,
    Loss,
    ObjectiveConfig,
    Params,
    UserError,
    Vocab,
)


@dataclasses.dataclass(frozen=True)
class Seq2Seq(ObjectiveConfig):
    """An encoder reads the source, a decoder generates the target (Raffel et al. 2020 §2.4).

    Batches have the source in input_ids, segment_ids and positions [B, S], and the target, end token included, in
    target_ids, target_segment_ids and target_positions [B, T].
    """

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
        """Encoder–decoders."""
        return ("encoder_decoder",)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("target_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Sources and targets."""
        return {**TEXT_SPEC, **TARGET_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective.

        Raises:
          UserError: the tokenizer has no pad token, with which the decoder starts.
        """
        vocab.require("Seq2Seq", "pad")
        settings = TokenLossConfig("target", self.label_smoothing, self.z_loss, self.load_balance)

        def add_targets(batch: Batch) -> Batch:
            require(batch, "target_ids", "Seq2Seq", "encoder_decoder")
            segments, positions = batch["target_segment_ids"], batch["target_positions"]
            return batch | {
                "decoder_ids": shift_right(batch["target_ids"], vocab.pad, positions),
                "decoder_segment_ids": segments,
                "decoder_positions": positions,
                "target_labels": batch["target_ids"],
                "target_weights": (segments > 0).astype(jnp.float32),
            }

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            return encoder_decoder_loss(apply, params, batch, rng, settings)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            batch = add_targets(batch)
            hidden, _ = encoder_decoder_states(apply, params, batch, None)
            return target_nll(apply, params, hidden, batch)

        def targets(raw: Batch, prepared: Batch) -> Targets:
            # The end token of the previous target precedes the first token, as where n-gram models are fitted.
            end = vocab.sep if vocab.eos is None else vocab.eos
            left = shift_right(raw["target_ids"], end, raw["target_positions"])
            return Targets(left, prepared["target_labels"], prepared["target_weights"])

        return Objective(lambda key, batch: add_targets(batch), loss, predict, targets, "target")


@dataclasses.dataclass(frozen=True)
class ConditionalLM(ObjectiveConfig):
    """A decoder reads the source and continues with the target in the same sequence. Dialogues have several targets.

    Batches are those of a causal language model with `target_mask` [B, S], 1 for tokens of targets.
    """

    bidirectional: bool = False
    """the tokens before a text's first target attend to each other in both directions, as in a prefix LM; set the same
    in `Decoding` to generate texts. Not for dialogues, whose prompts contain replies"""
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
        return frozenset(("target_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Texts, and the mask of their targets."""
        return {**TEXT_SPEC, **MASK_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        del vocab
        settings = TokenLossConfig("target", self.label_smoothing, self.z_loss)

        def add_targets(batch: Batch) -> Batch:
            require(batch, "target_mask", "ConditionalLM", "decoder")
            labels, weights = next_tokens(batch)
            weights = weights * jnp.roll(batch["target_mask"] > 0, -1, axis=1)
            prepared = batch | {"target_labels": labels, "target_weights": weights}
            return prepared | ({"bidirectional": in_source(batch)} if self.bidirectional else {})

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            return decoder_loss(apply, params, batch, rng, settings)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            batch = add_targets(batch)
            return target_nll(apply, params, encode(apply, params, batch), batch)

        return Objective(lambda key, batch: add_targets(batch), loss, predict, shifted_targets("target"), "target")


def in_source(batch: Batch) -> Bool[Array, "B S"]:
    """True for tokens before the first target of their text."""
    segments, mask = batch["segment_ids"], batch["target_mask"] > 0
    so_far = jnp.cumsum(mask, axis=1)
    before = running_max(jnp.where(is_first(segments), so_far - mask, 0))
    return (segments > 0) & (so_far == before)


def target_nll(apply: Apply, params: Params, hidden: Array, batch: Batch) -> dict[str, Array]:
    """−log p of each token of the given targets, in nats, and weights: 1 for these tokens, else 0."""
    losses = token_losses(apply, params, hidden, batch["target_labels"], method="lm_logits")
    return {"nll": losses.nll * batch["target_weights"], "weights": batch["target_weights"]}


def require(batch: Batch, name: str, user: str, architecture: str) -> None:
    """Raises UserError if the batch lacks a field that the objective needs."""
    if name not in batch:
        raise UserError(f"{user} needs data with {name!r}, such as TextToText(architecture={architecture!r})")
