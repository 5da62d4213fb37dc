"""Masked language modelling, optionally with next-sentence or sentence-order prediction.

Devlin et al. 2019 §3.1; sentence order: Lan et al. 2020 §3.1. The loss is derived line by line in docs/mlm_loss.md:

    J(θ) = −Σ_{i=1..M} log( exp(e_{w_i}ᵀ h_i) / Σ_{w'} exp(e_{w'}ᵀ h_i) )
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bertgpt.objectives.core import (
    Objective,
    Scores,
    Targets,
    classification,
    encode,
    gather_positions,
    is_ordinary,
    regularized_loss,
    token_losses,
    token_metrics,
    valid_labels,
)
from bertgpt.objectives.corruption import (
    SPAN_MAX,
    Unit,
    choose_positions,
    corrupt,
    first_slots,
    masking_spans,
    scatter_tokens,
    split_key,
    static_keys,
)
from bertgpt.ranges import Count, Fraction, Natural, NonNegative, Range, Rate, check_fields
from bertgpt.types import (
    TEXT_SPEC,
    Apply,
    Batch,
    BatchSpec,
    Field,
    Loss,
    ObjectiveConfig,
    Params,
    Sum,
    UserError,
    Vocab,
)

PAIR_LAYOUTS = {"nsp": "pairs", "sop": "swapped_pairs"}  # pair → the data.layout that provides its labels


@dataclasses.dataclass(frozen=True)
class MaskedLM(ObjectiveConfig):
    """Predict the original tokens at random positions; with `pair`, also how the two sentences of a sequence relate."""

    mask_rate: Annotated[float, Range(0.0, 1.0, above=True, below=True)] = 0.15
    """fraction of each document's tokens that are predicted (special tokens do not count)"""
    mask_token_rate: Fraction = 0.8
    """of the predicted positions, the fraction shown as [MASK]"""
    random_token_rate: Fraction = 0.1
    """of the predicted positions, the fraction shown as a random token; the rest stay as they are"""
    unit: Unit = "token"
    """what is masked as a whole: a token, a whole word, an n-gram of words (ALBERT) or a span of words (SpanBERT)"""
    max_ngram: Annotated[int, Range(1, 1_000)] = 3
    """the longest n-gram in words; n words have probability ∝ 1/n"""
    static_masks: Natural = 0
    """0: new masks at every step (RoBERTa); n: each sequence cycles through n fixed maskings, one per epoch (BERT)"""
    max_predictions: Count | None = None
    """most positions predicted in a sequence; None: enough for mask_rate of a full sequence, see `count_slots`"""
    reduction: Literal["token", "sequence", "sum"] = "token"
    """mean over predicted tokens, mean over documents of their means, or the plain sum of the formula"""
    label_smoothing: Rate = 0.0
    """probability mass that the target distribution spreads evenly over the vocabulary"""
    z_loss: NonNegative = 0.0
    """factor on (log Z)² of each prediction"""
    pair: Literal["nsp", "sop"] | None = None
    """add next-sentence prediction (label 0: B follows A; 1: B is random) or sentence-order prediction (label 0: two
    consecutive segments in order; 1: swapped)"""

    def __post_init__(self):
        check_fields(self)
        if self.mask_token_rate + self.random_token_rate > 1.0:
            raise UserError("MaskedLM: mask_token_rate + random_token_rate exceed 1")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("mlm_accuracy", "nsp_accuracy", "sop_accuracy"))

    @property
    def needs(self) -> BatchSpec:
        """Texts; with `pair` also the labels of pairs, with `static_masks` the index and epoch of each sequence."""
        names = [*(["pair_label"] if self.pair else []), *(["row", "epoch"] if self.static_masks else [])]
        return {**TEXT_SPEC, **dict.fromkeys(names, Field("int32", ("batch",)))}

    def hint(self, field: str) -> str:
        """Which layout of a corpus has sentence pairs."""
        if field != "pair_label" or self.pair is None:
            return ""
        return (
            f"pair={self.pair!r} needs sentence pairs; set data.layout to {PAIR_LAYOUTS[self.pair]!r} or"
            " objective.pair to None"
        )

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective, for this vocabulary.

        Raises:
          UserError: it has no mask token, or unit="word" and it has no subwords that continue a word.
        """
        vocab.require("MaskedLM", "mask")
        if self.unit == "word" and not vocab.continuation:
            raise UserError(
                "MaskedLM: unit='word' would equal unit='token', because no token of this vocabulary continues a word"
            )

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            if self.pair and "pair_label" not in batch:
                raise UserError(f"MaskedLM: {self.hint('pair_label')}")
            ids, segments = batch["input_ids"], batch["segment_ids"]
            span_key, key = split_key(noise_keys(key, batch, self.static_masks))
            choose_key, corrupt_key = split_key(key)
            spans = masking_spans(span_key, ids, segments, vocab, self.unit, self.max_ngram)
            ordinary = is_ordinary(ids, segments, vocab)
            count = count_slots(self, ids.shape[1])
            positions, weights = choose_positions(choose_key, ordinary, segments, self.mask_rate, count, spans)
            labels = jnp.take_along_axis(ids, positions, axis=1)
            shared = first_slots(spans, positions) if self.unit == "span" else None
            shown = corrupt(corrupt_key, labels, vocab, self.mask_token_rate, self.random_token_rate, shared)
            return batch | {
                "input_ids": scatter_tokens(ids, positions, shown, weights),
                "mlm_positions": positions,
                "mlm_labels": labels,
                "mlm_weights": weights,
            }

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            hidden = encode(apply, params, batch, rng)
            h = gather_positions(hidden, batch["mlm_positions"])
            losses = token_losses(apply, params, h, batch["mlm_labels"], method="mlm_logits", rng=rng)
            weights = batch["mlm_weights"]
            value = regularized_loss(losses, weights, self.label_smoothing, self.z_loss)
            terms = {"mlm": mlm_loss(value, weights, predicted_segments(batch), self.reduction)}
            metrics = token_metrics("mlm", losses, weights)  # per predicted token, whatever the reduction
            if self.pair:
                labels, present = valid_labels(batch["pair_label"])
                logits = apply(params, method="nsp_logits", hidden=hidden, segment_ids=batch["segment_ids"], rng=rng)
                terms[self.pair], metrics[f"{self.pair}_accuracy"] = classification(logits, labels, present)
                metrics[f"{self.pair}_loss"] = terms[self.pair]
                # The larger share is the accuracy of always predicting the more frequent label.
                counts = jnp.sum(jax.nn.one_hot(labels, 2) * present[:, None], axis=0)
                metrics[f"{self.pair}_labels"] = Sum(counts, jnp.sum(present))
            return Loss(terms, metrics)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            hidden = gather_positions(encode(apply, params, batch), batch["mlm_positions"])
            logits = apply(params, method="mlm_logits", hidden=hidden)
            # The embedding table may have more rows than the tokenizer has tokens; those are never predicted.
            probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[..., : vocab.size]), 5)
            return {"tokens": tokens, "probabilities": probabilities}

        def targets(raw: Batch, prepared: Batch) -> Targets:
            before = jnp.maximum(prepared["mlm_positions"] - 1, 0)
            left = jnp.take_along_axis(raw["input_ids"], before, axis=1)
            return Targets(left, prepared["mlm_labels"], prepared["mlm_weights"])

        def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Scores:
            # All at once, not in chunks as in `loss`: the teacher's logits have to be kept until they are compared.
            hidden = gather_positions(encode(apply, params, batch, rng), batch["mlm_positions"])
            return Scores(apply(params, method="mlm_logits", hidden=hidden, rng=rng), batch["mlm_weights"])

        return Objective(prepare, loss, predict, targets, target_metric="mlm", logits=logits)


def count_slots(config: MaskedLM, length: int) -> int:
    """Slots for predictions in a sequence of `length` tokens: max_predictions, or mask_rate of the tokens plus slack.

    Where masking spans have several tokens, the budget is met only on average, because the last span may exceed it. The
    slack is the number of words in the longest span; with it, less than 0.2 % of the predictions of a full sequence are
    dropped (at 1.3 subwords per word).
    """
    if config.max_predictions is not None:
        return min(length, config.max_predictions)
    slack = {"token": 0, "word": 1, "ngram": config.max_ngram, "span": SPAN_MAX}[config.unit]
    return min(length, math.ceil(length * config.mask_rate) + slack)


def noise_keys(key: Key[Array, ""], batch: Batch, static_masks: int) -> Key[Array, "*rows"]:
    """The key of the step or, for static masks, a key for each sequence from its index and epoch.

    Raises:
      UserError: static masks are configured and the batch lacks the index or the epoch of its sequences.
    """
    if not static_masks:
        return key
    for name in ("row", "epoch"):
        if name not in batch:
            raise UserError(f"MaskedLM: static_masks={static_masks} needs {name!r} in the batch, which is missing")
    return static_keys(batch["row"], batch["epoch"], static_masks)


def predicted_segments(batch: Batch) -> Int[Array, "B M"]:
    """The document of each predicted position."""
    return jnp.take_along_axis(batch["segment_ids"], batch["mlm_positions"], axis=1)


def mlm_loss(
    value: Float[Array, "B M"],
    weights: Float[Array, "B M"],
    segments: Int[Array, "B M"],
    reduction: Literal["token", "sequence", "sum"],
) -> Sum:
    """The MLM term of the loss, reduced over positions.

    Args:
      value: loss of each slot, 0 where the slot is not used.
      weights: 1 for used slots, else 0.
      segments: document of each slot.
      reduction: token: J divided by the number of predicted tokens. sequence: the mean over documents of the mean
        −log p of each document's predicted tokens. sum: J itself, −Σ_i log p(w_i), with weight 1.

    Returns:
      A sum and its weight; the loss is sum / weight over the global batch.
    """
    weights = weights.astype(value.dtype)
    if reduction == "token":
        return Sum(jnp.sum(value), jnp.sum(weights))
    if reduction == "sequence":
        same = (segments[:, :, None] == segments[:, None, :]) * weights[:, None, :]
        share = 1.0 / jnp.maximum(jnp.sum(same, axis=-1), 1.0)  # of its document's mean
        return Sum(jnp.sum(value * share), jnp.sum(weights * share))
    return Sum(jnp.sum(value), jnp.float32(1.0))
