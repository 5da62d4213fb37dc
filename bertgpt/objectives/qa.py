"""Objectives of question answering: the span of a context that answers a question, and one of several answers."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.objectives.core import (
    Objective,
    classification,
    encode,
    flatten_texts,
    negative_log_likelihood,
    valid_labels,
)
from bertgpt.types import (
    TEXT_SPEC,
    Apply,
    Architecture,
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

# The score of what is not allowed. Finite, for in rows that only fill up a batch nothing may be allowed.
NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class ExtractSpan(ObjectiveConfig):
    """Start and end of the answer to a question, each a softmax over a window of its context (Devlin et al. 2019 §4.2).

    Batches hold windows [CLS] question [SEP] context [SEP] and of each, as [B]: `start` and `end`, the places of the
    answer's first and last token, 0 ([CLS]) if the window does not have it, −1 to ignore the window; and as half-open
    ranges of places `context_start`, `context_end`, and `central_start`, `central_end`, where an answer may start that
    no other window of the context sees better.
    """

    max_answer: int = 30
    """tokens in an answer at most"""
    n_best: int = 20
    """spans of each window that are kept"""

    def __post_init__(self):
        if self.max_answer < 1 or self.n_best < 1:
            raise UserError(f"ExtractSpan: max_answer={self.max_answer} and n_best={self.n_best} must be at least 1")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("window_accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Windows, the positions of their answers and the ranges where answers may be."""
        names = ("start", "end", "context_start", "context_end", "central_start", "central_end")
        return {**TEXT_SPEC, **dict.fromkeys(names, Field("int32", ("batch",)))}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective.

        Raises:
          UserError: the tokenizer has no [CLS], as those of decoders have none.
        """
        if vocab.cls is None:
            raise UserError(
                "ExtractSpan: span answers need an encoder, whose tokenizer has a cls token; this one has none"
            )

        def scores(
            apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None
        ) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
            """Scores of places as start and as end, where one may be."""
            logits = apply(params, method="span_logits", hidden=encode(apply, params, batch, rng), rng=rng)
            place = jnp.arange(logits.shape[1])
            allowed = inside(place, batch["context_start"], batch["context_end"]) | (place == 0)
            return tuple(jnp.where(allowed, logits[..., i], NEVER) for i in range(2))

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            start_scores, end_scores = scores(apply, params, batch, rng)
            start, weights = valid_labels(batch["start"])
            end, _ = valid_labels(batch["end"])
            total = jnp.sum(weights)
            nll = negative_log_likelihood(start_scores, start) + negative_log_likelihood(end_scores, end)
            right = (jnp.argmax(start_scores, axis=1) == start) & (jnp.argmax(end_scores, axis=1) == end)
            return Loss(
                {"cross_entropy": Sum(0.5 * jnp.sum(nll * weights), total)},
                {"window_accuracy": Sum(jnp.sum(right * weights), total)},
            )

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            start, end = scores(apply, params, batch, None)
            null = start[:, 0] + end[:, 0]  # [CLS] as start and as end (Devlin et al. 2019 §4.3)
            place = jnp.arange(start.shape[1])
            start = jnp.where(inside(place, batch["central_start"], batch["central_end"]), start, NEVER)
            return {"null_score": null} | best_spans(start, end, self.max_answer, self.n_best)

        return Objective(lambda key, batch: batch, loss, predict)


def inside(place: Int[Array, " S"], start: Int[Array, " B"], end: Int[Array, " B"]) -> Bool[Array, "B S"]:
    """Whether each place is in each row's half-open range."""
    return (place >= start[:, None]) & (place < end[:, None])


def best_spans(start: Float[Array, "B S"], end: Float[Array, "B S"], longest: int, count: int) -> dict[str, Array]:
    """The `count` best spans of at most `longest` places in each row, by the sum of two scores, best first.

    Returns:
      span_start, span_end (the last place), span_score, each [B, count]; the score is about −1e30 where there is none.
    """
    length = start.shape[1]
    longest = min(longest, length)
    last = jnp.arange(length)[:, None] + jnp.arange(longest)
    ends = jnp.where(last < length, end[:, jnp.minimum(last, length - 1)], NEVER)
    total: Float[Array, "B S L"] = start[:, :, None] + ends
    score, index = jax.lax.top_k(total.reshape(len(total), -1), min(count, length * longest))
    first, more = index // longest, index % longest
    return {"span_start": first, "span_end": first + more, "span_score": score}


@dataclasses.dataclass(frozen=True)
class ChooseOne(ObjectiveConfig):
    """Cross-entropy over the choices of a question, each scored by one number (Devlin et al. 2019 §4.4).

    Batches hold a row for each choice, [B, N, S], and `label` [B], the number of the right one. Where a question has
    fewer choices than N, segment_ids are 0.
    """

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Models with `class_logits`."""
        return ("encoder", "decoder")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("accuracy",))

    @property
    def needs(self) -> BatchSpec:
        """Several texts for each example."""
        return {field: Field("int32", ("batch", "choice", "sequence")) for field in TEXT_SPEC}

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""

        def scores(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Float[Array, "B N"]:
            questions, choices, _ = batch["input_ids"].shape
            texts = flatten_texts(batch)
            hidden = encode(apply, params, texts, rng)
            logits = apply(
                params,
                method="class_logits",
                hidden=hidden,
                segment_ids=texts["segment_ids"],
                num_labels=1,
                rng=rng,
            )
            present = jnp.any(batch["segment_ids"] > 0, axis=2)
            return jnp.where(present, logits.reshape(questions, choices), NEVER)

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            labels, weights = valid_labels(batch["label"])
            cross_entropy, accuracy = classification(scores(apply, params, batch, rng), labels, weights)
            return Loss({"cross_entropy": cross_entropy}, {"accuracy": accuracy})

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return {"probabilities": jax.nn.softmax(scores(apply, params, batch, None))}

        return Objective(lambda key, batch: batch, loss, predict)
