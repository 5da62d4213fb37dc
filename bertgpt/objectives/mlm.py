"""Masked language modelling, with next-sentence prediction beside it (Devlin et al. 2019 §3.1).

The loss is derived line by line in docs/mlm_loss.md:

    J(θ) = −Σ_{i=1..M} log( exp(e_{w_i}ᵀ h_i) / Σ_{w'} exp(e_{w'}ᵀ h_i) )

Corruption is a pure function of (key, ids), drawn on device: row b, position s gets the same noise from the same key,
however the batch is split over devices.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.config import UserError, Vocab
from bertgpt.objectives.core import (
    Apply,
    Batch,
    Loss,
    Objective,
    Params,
    Sum,
    classification,
    encode,
    gather_positions,
    negative_log_likelihood,
    valid_labels,
)


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Predict the original token at randomly chosen positions; with pair="nsp", also whether sentence B follows A."""

    mask_rate: float = 0.15
    """fraction of each document's tokens that are predicted (special tokens do not count)"""
    mask_token_rate: float = 0.8
    """of the predicted positions, the fraction shown as [MASK]"""
    random_token_rate: float = 0.1
    """of the predicted positions, the fraction shown as a random token; the rest stay as they are"""
    max_predictions: int | None = None
    """positions predicted in a row at most; None: enough for mask_rate of a full row"""
    reduction: Literal["token", "sequence", "sum"] = "token"
    """mean over predicted tokens, mean over documents of their means, or the formula's plain sum"""
    pair: Literal["nsp"] | None = None
    """add next-sentence prediction (label 0: B follows A; 1: B is random)"""

    def __post_init__(self):
        if not 0.0 < self.mask_rate < 1.0:
            raise UserError(f"MaskedLM: mask_rate={self.mask_rate} must lie between 0 and 1")
        for field in ("mask_token_rate", "random_token_rate"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise UserError(f"MaskedLM: {field}={getattr(self, field)} must lie in [0, 1]")
        if self.mask_token_rate + self.random_token_rate > 1.0:
            raise UserError("MaskedLM: mask_token_rate + random_token_rate exceed 1")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise UserError(f"MaskedLM: max_predictions={self.max_predictions} must be at least 1")

    def make(self, vocab: Vocab) -> Objective:
        """The three functions of the objective, for this vocabulary.

        Raises:
          UserError: it has no mask token.
        """
        vocab.require("MaskedLM", "mask")

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            if self.pair and "pair_label" not in batch:
                raise UserError(
                    "MaskedLM: pair='nsp' needs sentence pairs; set data.rows to 'pairs' or objective.pair to None"
                )
            length = batch["input_ids"].shape[1]
            count = self.max_predictions or math.ceil(length * self.mask_rate)
            choose_key, corrupt_key = jax.random.split(key)
            maskable = is_maskable(batch["input_ids"], batch["segment_ids"], vocab)
            positions, weights = choose_positions(choose_key, maskable, batch["segment_ids"], self.mask_rate, count)
            labels = jnp.take_along_axis(batch["input_ids"], positions, axis=1)
            shown = corrupt(corrupt_key, labels, vocab, self.mask_token_rate, self.random_token_rate)
            return batch | {
                "input_ids": scatter_tokens(batch["input_ids"], positions, shown, weights),
                "mlm_positions": positions,
                "mlm_labels": labels,
                "mlm_weights": weights,
            }

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            hidden = encode(apply, params, batch, rng)
            h = gather_positions(hidden, batch["mlm_positions"])
            logits = apply(params, h, method="mlm_logits", rng=rng)
            terms = {"mlm": mlm_loss(logits, batch, self.reduction)}
            # Reported per predicted token whatever the reduction, so that runs compare.
            per_token, accuracy = classification(logits, batch["mlm_labels"], batch["mlm_weights"])
            metrics = {"mlm_loss": per_token, "mlm_accuracy": accuracy}
            if self.pair:
                labels, weights = valid_labels(batch["pair_label"])
                nsp = apply(params, hidden, batch["segment_ids"], method="nsp_logits", rng=rng)
                terms["nsp"], metrics["nsp_accuracy"] = classification(nsp, labels, weights)
                metrics["nsp_loss"] = terms["nsp"]
            return Loss(terms, metrics)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            logits = apply(
                params, gather_positions(encode(apply, params, batch), batch["mlm_positions"]), method="mlm_logits"
            )
            # A model's table may have more rows than the tokenizer has tokens: those are never an answer.
            probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[..., : vocab.size]), 5)
            return {"tokens": tokens, "probabilities": probabilities}

        return Objective(prepare, loss, predict)


def is_maskable(ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], vocab: Vocab) -> Bool[Array, "B S"]:
    """True for real tokens: neither padding nor special ([UNK] is special: there is no word to predict)."""
    special = jnp.isin(ids, jnp.asarray(vocab.special))
    return (segment_ids > 0) & ~special


def choose_positions(
    key: Key[Array, ""],
    maskable: Bool[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    rate: float,
    count: int,
) -> tuple[Int[Array, "B M"], Float[Array, "B M"]]:
    """Chooses positions to predict, without replacement, `count` slots per row of which those with weight 1 are real.

    Each document of a packed row gets its own budget, max(1, round(n · rate)) of its n maskable tokens, as BERT's data
    recipe gives each sequence. A row that wants more than `count` drops the excess at random, but never a document's
    only position while another document has two.
    """
    noise = jnp.where(maskable, jax.random.uniform(key, maskable.shape), 2.0)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    # Rank of a token among the maskable tokens of its document, in the order of the noise (equal noise: of place).
    place = jnp.arange(maskable.shape[1])
    before = (noise[:, None, :] < noise[:, :, None]) | (
        (noise[:, None, :] == noise[:, :, None]) & (place[None, None, :] < place[None, :, None])
    )
    rank = jnp.sum(same & before, axis=-1)
    size = jnp.sum(same & maskable[:, None, :], axis=-1)
    budget = jnp.maximum(1, jnp.round(size * rate).astype(jnp.int32))
    chosen = maskable & (rank < budget)
    first = rank == 0
    scores, positions = jax.lax.top_k(jnp.where(chosen, 2.0 - noise + 2.0 * first, 0.0), count)
    return positions, (scores > 0.0).astype(jnp.float32)


def corrupt(
    key: Key[Array, ""], tokens: Int[Array, "B M"], vocab: Vocab, mask_token_rate: float, random_token_rate: float
) -> Int[Array, "B M"]:
    """What the model sees at predicted positions: [MASK], a random ordinary token, or the token itself (80/10/10)."""
    kind_key, token_key = jax.random.split(key)
    kind = jax.random.uniform(kind_key, tokens.shape)
    # Draw among the ordinary ids only: number them 0 … n−1, then step over the special ids in ascending order.
    drawn = jax.random.randint(token_key, tokens.shape, 0, vocab.size - len(set(vocab.special)), tokens.dtype)
    for special in sorted(set(vocab.special)):
        drawn = drawn + (drawn >= special)
    return jnp.where(
        kind < mask_token_rate, vocab.mask, jnp.where(kind < mask_token_rate + random_token_rate, drawn, tokens)
    )


def scatter_tokens(
    ids: Int[Array, "B S"], positions: Int[Array, "B M"], tokens: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> Int[Array, "B S"]:
    """ids with `tokens` put at `positions` where weight is 1 (positions within a row are distinct)."""
    tokens = jnp.where(weights > 0, tokens, jnp.take_along_axis(ids, positions, axis=1))
    return jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))(ids, positions, tokens)


def mlm_loss(logits: Float[Array, "B M V"], batch: Batch, reduction: Literal["token", "sequence", "sum"]) -> Sum:
    """J of the batch as (sum, weight), so that sum / weight over the global batch is the chosen reduction.

    sum: J itself, −Σ_i log p(w_i), with weight 1.
    token: J over the number of predicted tokens.
    sequence: each document's mean −log p over its own predicted tokens, then the mean over documents that have any.
    """
    nll = negative_log_likelihood(logits, batch["mlm_labels"])
    weights = batch["mlm_weights"].astype(nll.dtype)
    if reduction == "token":
        return Sum(jnp.sum(nll * weights), jnp.sum(weights))
    if reduction == "sequence":
        segments = jnp.take_along_axis(batch["segment_ids"], batch["mlm_positions"], axis=1)
        same = (segments[:, :, None] == segments[:, None, :]) * weights[:, None, :]
        per_document = weights / jnp.maximum(jnp.sum(same, axis=-1), 1.0)  # these sum to 1 within a document
        return Sum(jnp.sum(nll * per_document), jnp.sum(per_document))
    return Sum(jnp.sum(nll * weights), jnp.float32(1.0))
