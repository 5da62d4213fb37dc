"""Span corruption (T5, Raffel et al. 2020 §3.1.4): spans are replaced by sentinels in the input and asked for in order.

    text     Thank you for inviting me to your party last week
    input    Thank you <X> me to your party <Y> week </s>
    target   <X> for inviting <Y> last </s>

A document of n tokens loses N = round(n · rate) of them in K = round(N / mean) spans, of which none touches another and
the first does not begin the document. The lengths of the K spans are drawn uniformly from all ways to cut N into K
parts, those of the text between them likewise (`random_spans_noise_mask` of the released code, with the same rounding).
So a row of one document becomes n − N + K + 1 tokens of input and N + K + 1 of target, whatever is drawn: with rows of
`raw_length(512)` = 568 tokens, 512 and 114, and nothing is padded.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.objectives.core import Objective, Targets, check_word_loss, count_by_document, is_ordinary
from bertgpt.objectives.corruption import latest
from bertgpt.objectives.lm import WordsAsked, decoder_loss, encoder_decoder_loss, shift_right
from bertgpt.types import Apply, Architecture, Batch, Loss, ObjectiveConfig, Params, Sum, UserError, Vocab


@dataclasses.dataclass(frozen=True)
class SpanCorruption(ObjectiveConfig):
    """Reconstruct spans of a text that sentinels stand for."""

    noise_rate: float = 0.15
    """fraction of a document's tokens that are taken out"""
    mean_span: float = 3.0
    """mean length of a span, in tokens"""
    architecture: Literal["encoder_decoder", "decoder"] = "encoder_decoder"
    """the model: encoder for the input and decoder for the target, or a decoder that reads both, one after the other"""
    input_len: int | None = None
    """tokens of input in a row; None: what one document that fills the row needs. Rows of several documents need more:
    data.seq_len is always enough"""
    target_len: int | None = None
    """tokens of target in a row; None: likewise. What does not fit is cut off and counted as `span_cut`"""
    label_smoothing: float = 0.0
    """probability mass that the target gives to all words alike"""
    z_loss: float = 0.0
    """factor on (log Z)² of each prediction"""
    load_balance: float = 1e-2
    """factor on the load-balancing loss of each Switch layer, if the model has any"""

    def __post_init__(self):
        check_word_loss("SpanCorruption", self)
        if not 0.0 < self.noise_rate < 1.0:
            raise UserError(f"SpanCorruption: noise_rate={self.noise_rate} must lie between 0 and 1")
        if not self.mean_span >= 1.0:
            raise UserError(f"SpanCorruption: mean_span={self.mean_span} must be at least 1")
        for field in ("input_len", "target_len"):
            if vars(self)[field] is not None and vars(self)[field] < 2:
                raise UserError(f"SpanCorruption: {field}={vars(self)[field]} must be at least 2")

    def counts(self, length: int) -> tuple[int, int]:
        """(tokens taken out, spans) of a document of this many tokens."""
        noise = min(max(round(length * self.noise_rate), 1), length - 1)
        return noise, min(max(round(noise / self.mean_span), 1), length - noise)

    def lengths(self, length: int) -> tuple[int, int]:
        """(input, target) tokens that a document of this many tokens becomes, end marks included."""
        noise, spans = self.counts(length)
        return length - noise + spans + 1, noise + spans + 1

    def raw_length(self, input_len: int) -> int:
        """The most tokens of a document whose input fits into `input_len`."""
        length = input_len
        while self.lengths(length + 1)[0] <= input_len:
            length += 1
        return length

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The one that is configured."""
        return (self.architecture,)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(
            (
                "span_accuracy",
                "word_accuracy",
            )
        )

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective, for this vocabulary.

        Raises:
          UserError: it lacks an end mark, a pad token or sentinels; the last depends on the length of rows.
        """
        vocab.require("SpanCorruption", "eos", "pad")

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            length = batch["input_ids"].shape[1]
            _, spans = self.counts(length)
            if spans > len(vocab.sentinels):
                raise UserError(
                    f"SpanCorruption: a row of {length} tokens needs {spans} sentinels, the tokenizer has"
                    f" {len(vocab.sentinels)}; train it with more, or shorten data.seq_len or raise mean_span"
                )
            inputs, targets = self.lengths(length)
            counts = [self.counts(n) if n > 1 else (0, 1) for n in range(length + 1)]
            spanned = take_spans(key, batch, vocab, jnp.asarray(counts, jnp.int32))
            source = lay_out(spanned, spanned.in_input, spanned.input_ids, vocab, self.input_len or inputs)
            target = lay_out(spanned, spanned.in_target, spanned.target_ids, vocab, self.target_len or targets)
            rest = {name: array for name, array in batch.items() if array.ndim == 1}
            wanted = jnp.sum(spanned.in_target, axis=1) + spanned.documents
            prepared = {
                "span_labels": target.ids,
                "span_weights": (target.segment_ids > 0).astype(jnp.float32),
                "span_words": target.is_word.astype(jnp.float32),
                "span_left": target.left,
                "span_cut": wanted - jnp.sum(target.segment_ids > 0, axis=1),
            }
            start = vocab.pad if self.architecture == "encoder_decoder" else vocab.eos
            decoder_ids = shift_right(target.ids, start, target.positions)
            if self.architecture == "encoder_decoder":
                return rest | prepared | {
                    "input_ids": source.ids,
                    "segment_ids": source.segment_ids,
                    "positions": source.positions,
                    "decoder_ids": decoder_ids,
                    "decoder_segment_ids": target.segment_ids,
                    "decoder_positions": target.positions,
                }  # fmt: skip
            # A decoder reads all inputs of the row, then all targets; each document sees its own.
            own = jnp.take_along_axis(source.document_lengths, target.segment_ids, axis=1)
            segments = jnp.concatenate([source.segment_ids, target.segment_ids], axis=1)
            return rest | prepared | {
                "input_ids": jnp.concatenate([source.ids, decoder_ids], axis=1),
                "segment_ids": segments,
                "positions": jnp.concatenate([source.positions, target.positions + own], axis=1),
                "type_ids": jnp.zeros_like(segments),
                "bidirectional": jnp.concatenate([source.segment_ids > 0, target.segment_ids < 0], axis=1),
            }  # fmt: skip

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            of_form = decoder_loss if self.architecture == "decoder" else encoder_decoder_loss
            value = of_form(
                apply, params, batch, rng, WordsAsked("span", self.label_smoothing, self.z_loss, self.load_balance)
            )
            rows = jnp.float32(batch["span_cut"].shape[0])
            return Loss(value.terms, value.metrics | {"span_cut": Sum(jnp.sum(batch["span_cut"]), rows)})

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            raise UserError("span corruption answers no single texts; fill sentinels in with `bertgpt generate`")

        def targets(raw: Batch, prepared: Batch) -> Targets:
            del raw
            return Targets(prepared["span_left"], prepared["span_labels"], prepared["span_words"])

        return Objective(prepare, loss, predict, targets, target_metric="word")


class Spanned(NamedTuple):
    """Rows with ordinary tokens moved to the front, in order, and what becomes of each; the rest has segment 0."""

    ids: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    noise: Bool[Array, "B S"]
    """taken out"""
    input_ids: Int[Array, "B S"]
    """the token, or the sentinel of the span that begins here"""
    in_input: Bool[Array, "B S"]
    """whether `input_ids` here goes into the input"""
    target_ids: Int[Array, "B S"]
    """the token, or the sentinel of the span that follows the text that begins here"""
    in_target: Bool[Array, "B S"]
    documents: Int[Array, " B"]
    """documents in each row"""


def take_spans(key: Key[Array, ""], batch: Batch, vocab: Vocab, counts: Int[Array, "lengths 2"]) -> Spanned:
    """Chooses the spans of every document of every row; counts[n] is (tokens to take out, spans) of n tokens."""
    ids, segments = batch["input_ids"], batch["segment_ids"]
    ordinary = is_ordinary(ids, segments, vocab)
    order = jnp.argsort(~ordinary, axis=1, stable=True)
    ids, segments = (jnp.take_along_axis(x, order, axis=1) for x in (ids, jnp.where(ordinary, segments, 0)))
    place = jnp.arange(ids.shape[1])[None]
    lengths = count_by_document(segments >= 0, segments)
    n = jnp.take_along_axis(lengths, segments, axis=1)
    starts = is_first(segments)
    first = latest(jnp.where(starts, place, 0))
    offset = place - first
    taken, spans = counts[n, 0], counts[n, 1]
    # Draw the cuts: number the kept tokens of a document 0 … n − N − 1, then the lost ones 0 … N − 1, and choose K − 1
    # of the places after the first of each kind at random. Part k of one kind is then followed by part k of the other.
    lost = offset >= n - taken
    group = 2 * segments + lost
    begins = is_first(group)
    noise = jnp.where(begins, 2.0, jax.random.uniform(key, ids.shape))  # the first of a kind is no place to cut
    cut = (rank_within(group, noise) < spans - 1) & ~begins & (segments > 0)
    part = jnp.cumsum(cut, axis=1)
    part = part - latest(jnp.where(begins, part, 0))
    merged = jnp.lexsort((2 * part + lost, first))
    noise_mask = jnp.take_along_axis(lost, merged, axis=1) & (segments > 0)

    before = jnp.roll(noise_mask, 1, axis=1) & ~starts
    noise_starts = noise_mask & ~before
    text_starts = ~noise_mask & (before | starts) & (segments > 0) & (n > 1)
    number = jnp.cumsum(noise_starts, axis=1)
    base = latest(jnp.where(starts, number - noise_starts, 0))
    sentinels = jnp.asarray(vocab.sentinels, ids.dtype)
    # A span that begins here is number − 1; one that follows the text that begins here is the next.
    input_ids = jnp.where(noise_starts, sentinels[number - 1 - base], ids)
    target_ids = jnp.where(noise_mask, ids, sentinels[number - base])
    kept = (segments > 0) & (~noise_mask | noise_starts)
    return Spanned(
        ids, segments, noise_mask, input_ids, kept, target_ids, noise_mask | text_starts,
        jnp.sum(starts & (segments > 0), axis=1, dtype=jnp.int32),
    )  # fmt: skip


class LaidOut(NamedTuple):
    """One side of the pairs, moved together, with an end mark after each document."""

    ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    is_word: Bool[Array, "B T"]
    """neither a sentinel nor an end mark"""
    left: Int[Array, "B T"]
    """of words, the token to the left in the text"""
    document_lengths: Int[Array, "B segments"]
    """tokens on this side of each segment of the row"""


def lay_out(spanned: Spanned, chosen: Bool[Array, "B S"], ids: Int[Array, "B S"], vocab: Vocab, length: int) -> LaidOut:
    """The chosen ids one after another, `length` of them at most; padding has segment 0."""
    segments = spanned.segment_ids
    rows, size = segments.shape
    row = jnp.arange(rows)[:, None]
    ends = is_first(segments[:, ::-1])[:, ::-1] & (segments > 0)
    starts = is_first(segments) & (segments > 0)
    nth = jnp.cumsum(starts, axis=1)  # 1, 2, … document of the row
    count = jnp.cumsum(chosen, axis=1)
    to = jnp.where(chosen, count - 1 + nth - 1, length)  # each document before has brought its end mark
    to_end = jnp.where(ends, count + nth - 1, length)
    word = chosen & spanned.noise & (ids == spanned.ids)
    values = {
        "ids": (ids, jnp.full_like(ids, vocab.eos)),
        "segment_ids": (segments, segments),
        "is_word": (word, jnp.zeros_like(word)),
        "left": (jnp.roll(spanned.ids, 1, axis=1), jnp.zeros_like(ids)),
    }
    placed = {}
    for name, (inner, end) in values.items():
        empty = jnp.full((rows, length), vocab.pad if name == "ids" else 0, inner.dtype)
        placed[name] = empty.at[row, to].set(inner, mode="drop").at[row, to_end].set(end, mode="drop")
    laid = placed["segment_ids"]
    place = jnp.arange(length)[None]
    first = latest(jnp.where(is_first(laid), place, 0))
    lengths = jnp.zeros((rows, size + 1), jnp.int32).at[row, laid].add(1)
    return LaidOut(placed["ids"], laid, (place - first) * (laid > 0), placed["is_word"], placed["left"], lengths)


def is_first(groups: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """True where a group begins."""
    return jnp.concatenate([jnp.ones_like(groups[:, :1], bool), groups[:, 1:] != groups[:, :-1]], axis=1)


def rank_within(groups: Int[Array, "B S"], noise: Float[Array, "B S"]) -> Int[Array, "B S"]:
    """Rank of each token, from 0, among its group (neighbours with the same number) in the order of the noise."""
    place = jnp.arange(groups.shape[1])[None]
    first = latest(jnp.where(is_first(groups), place, 0))
    order = jnp.lexsort((noise, first))
    rank = jnp.zeros_like(order).at[jnp.arange(groups.shape[0])[:, None], order].set(place + jnp.zeros_like(order))
    return rank - first
