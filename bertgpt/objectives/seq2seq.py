"""Text to text: learn to write the target that belongs to a source, with an encoder–decoder or a decoder alone.

    J(θ) = −Σ_t log p(y_t | y_1 … y_{t−1}, x)

The end mark of a target is one of its words; of the source no word is asked for. The decoder is given the true words
before each (teacher forcing). Several pairs may share a row: encoder and decoder have the same segment numbers.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from bertgpt.objectives.core import Objective, Targets, check_word_loss, encode, score_words
from bertgpt.objectives.corruption import latest
from bertgpt.objectives.lm import (
    WordsAsked,
    decoder_loss,
    encoder_decoder_loss,
    encoder_decoder_states,
    next_tokens,
    shift_right,
    shifted_targets,
)
from bertgpt.objectives.span import is_first
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
    """An encoder reads the source, a decoder writes the target (Raffel et al. 2020 §2.4).

    Rows hold the source in input_ids, segment_ids and positions [B, S], and the target, end mark included, in
    target_ids, target_segment_ids and target_positions [B, T].
    """

    label_smoothing: float = 0.0
    """probability mass that the target gives to all words alike"""
    z_loss: float = 0.0
    """factor on (log Z)² of each prediction"""
    load_balance: float = 1e-2
    """factor on the load-balancing loss of each Switch layer, if the model has any"""

    architecture: ClassVar[str] = "encoder_decoder"
    """the model that it is for"""

    def __post_init__(self):
        check_word_loss("Seq2Seq", self)

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
          UserError: there is no pad token, with which the decoder starts.
        """
        vocab.require("Seq2Seq", "pad")
        asked = WordsAsked("target", self.label_smoothing, self.z_loss, self.load_balance)

        def ready(batch: Batch) -> Batch:
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
            return encoder_decoder_loss(apply, params, batch, rng, asked)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            batch = ready(batch)
            hidden, _ = encoder_decoder_states(apply, params, batch, None)
            return scored(apply, params, hidden, batch)

        def targets(raw: Batch, prepared: Batch) -> Targets:
            # Left of a target's first word stands the end mark of the target before, as in the text that is counted.
            end = vocab.sep if vocab.eos is None else vocab.eos
            left = shift_right(raw["target_ids"], end, raw["target_positions"])
            return Targets(left, prepared["target_labels"], prepared["target_weights"])

        return Objective(lambda key, batch: ready(batch), loss, predict, targets, "target")


@dataclasses.dataclass(frozen=True)
class ConditionalLM(ObjectiveConfig):
    """A decoder reads the source and goes on with the target, in the same row; dialogues have several targets in one.

    Rows are those of a causal language model with `target_mask` [B, S], 1 where a token is part of a target.
    """

    bidirectional: bool = False
    """the tokens before a text's first target see each other in both directions, as in a prefix LM; texts are then
    generated with the same setting of `Decoding`. Not for dialogues, whose prompts hold replies"""
    label_smoothing: float = 0.0
    """probability mass that the target gives to all words alike"""
    z_loss: float = 0.0
    """factor on (log Z)² of each prediction"""

    architecture: ClassVar[str] = "decoder"
    """the model that it is for"""

    def __post_init__(self):
        check_word_loss("ConditionalLM", self)

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
        """Texts, and which of their tokens are targets."""
        return {**TEXT_SPEC, **MASK_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        del vocab
        asked = WordsAsked("target", self.label_smoothing, self.z_loss)

        def ready(batch: Batch) -> Batch:
            require(batch, "target_mask", "ConditionalLM", "decoder")
            labels, weights = next_tokens(batch)
            weights = weights * jnp.roll(batch["target_mask"] > 0, -1, axis=1)
            prepared = batch | {"target_labels": labels, "target_weights": weights}
            return prepared | ({"bidirectional": in_source(batch)} if self.bidirectional else {})

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            return decoder_loss(apply, params, batch, rng, asked)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            batch = ready(batch)
            return scored(apply, params, encode(apply, params, batch), batch)

        return Objective(lambda key, batch: ready(batch), loss, predict, shifted_targets("target"), "target")


def in_source(batch: Batch) -> Bool[Array, "B S"]:
    """True for the tokens before the first target of their text."""
    segments, mask = batch["segment_ids"], batch["target_mask"] > 0
    so_far = jnp.cumsum(mask, axis=1)
    before = latest(jnp.where(is_first(segments), so_far - mask, 0))
    return (segments > 0) & (so_far == before)


def scored(apply: Apply, params: Params, hidden: Array, batch: Batch) -> dict[str, Array]:
    """−log p of each word of the targets, in nats, and 1 where there is one: what the model thinks of given texts."""
    scores = score_words(apply, params, hidden, batch["target_labels"], method="lm_logits")
    return {"nll": scores.nll * batch["target_weights"], "weights": batch["target_weights"]}


def require(batch: Batch, name: str, user: str, architecture: str) -> None:
    """Raises UserError if the rows are not those that the objective asks for."""
    if name not in batch:
        raise UserError(
            f"{user} needs data with {name!r} in its rows, such as TextToText(architecture={architecture!r})"
        )
