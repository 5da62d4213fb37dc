"""Question answering: extract a span of a context, or choose one of several answers."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.objectives.core import (
    Objective,
    Scores,
    classification,
    encode,
    flatten_texts,
    negative_log_likelihood,
    valid_labels,
)
from bertgpt.ranges import Count, check_fields
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

# Score of positions that are not allowed. Finite, because examples that fill up a batch may have no allowed position.
NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class ExtractSpan(ObjectiveConfig):
    """Start and end of the answer, each a softmax over a window of the context (Devlin et al. 2019 §4.2).

    Batches hold windows [CLS] question [SEP] context [SEP], and for each window:
      start, end [B]: positions of the first and last token of the answer; 0 ([CLS]) if it is not in the window, −1 to
        ignore the window.
      context_start, context_end [B]: half-open range of the context.
      central_start, central_end [B]: half-open range of answer starts that no other window shows with more context.
    """

    max_answer: Count = 30
    """most tokens of an answer"""
    n_best: Count = 20
    """best spans kept of each window"""

    def __post_init__(self):
        check_fields(self)

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
          UserError: the tokenizer has no [CLS], such as those of decoders.
        """
        if vocab.cls is None:
            raise UserError(
                "ExtractSpan: span answers need an encoder, whose tokenizer has a cls token; this tokenizer has none"
            )

        def scores(
            apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None
        ) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
            """Scores of each position as start and as end; NEVER outside of the context and [CLS]."""
            logits = apply(params, method="span_logits", hidden=encode(apply, params, batch, rng), rng=rng)
            position = jnp.arange(logits.shape[1])
            allowed = inside(position, batch["context_start"], batch["context_end"]) | (position == 0)
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
            position = jnp.arange(start.shape[1])
            start = jnp.where(inside(position, batch["central_start"], batch["central_end"]), start, NEVER)
            return {"null_score": null} | best_spans(start, end, self.max_answer, self.n_best)

        def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Scores:
            both = jnp.stack(scores(apply, params, batch, rng), axis=1)  # [B, 2, S]
            there = jnp.any(batch["segment_ids"] > 0, axis=1, keepdims=True).astype(jnp.float32)
            return Scores(both, jnp.broadcast_to(there, both.shape[:2]))

        return Objective(lambda key, batch: batch, loss, predict, logits=logits)


def inside(position: Int[Array, " S"], start: Int[Array, " B"], end: Int[Array, " B"]) -> Bool[Array, "B S"]:
    """Whether each position lies in the half-open range of each example."""
    return (position >= start[:, None]) & (position < end[:, None])


def best_spans(start: Float[Array, "B S"], end: Float[Array, "B S"], longest: int, count: int) -> dict[str, Array]:
    """The best spans of each window, by the sum of the scores of start and end, best first.

    Args:
      start: score of each position as start.
      end: score of each position as end.
      longest: most tokens of a span.
      count: number of spans.

    Returns:
      span_start, span_end (inclusive) and span_score, each [B, count]; scores of about −1e30 mean that there are fewer.
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
    """Cross-entropy over the choices of a question, each scored by one logit (Devlin et al. 2019 §4.4).

    Batches hold a sequence for each choice, [B, N, S], and `label` [B], the index of the correct one. Where a question
    has fewer than N choices, segment_ids are 0.
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
        """A text for each choice."""
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

        def logits(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Scores:
            there = jnp.any(batch["segment_ids"] > 0, axis=(1, 2))
            return Scores(scores(apply, params, batch, rng), there.astype(jnp.float32))

        return Objective(lambda key, batch: batch, loss, predict, logits=logits)
