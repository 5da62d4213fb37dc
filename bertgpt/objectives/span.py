"""Span corruption (T5, Raffel et al. 2020 §3.1.4): sentinels replace spans, which are the target.

    text     Thank you for inviting me to your party last week
    input    Thank you <X> me to your party <Y> week </s>
    target   <X> for inviting <Y> last </s>

From a document of n tokens, N = round(n · rate) are removed in K = round(N / mean) spans. Spans do not touch, and none
begins the document. The lengths of the K spans are sampled uniformly from all ways to split N into K parts, those of
the text between them likewise (`random_spans_noise_mask` of the released code, with the same rounding). A sequence of
one document therefore always becomes n − N + K + 1 tokens of input and N + K + 1 of target: sequences of
`raw_length(512)` = 568 tokens become 512 and 114, without padding.

Every token of a text is in the input or in the target, unknown tokens included. The special tokens that the layout puts
around a document are not text: the end tokens of input and target take their place.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.objectives.core import Objective, Targets, count_by_document
from bertgpt.objectives.corruption import running_max
from bertgpt.objectives.lm import TokenLossConfig, decoder_loss, encoder_decoder_loss, shift_right
from bertgpt.ranges import NonNegative, Range, Rate, check_fields
from bertgpt.types import Apply, Architecture, Batch, Loss, ObjectiveConfig, Params, Sum, UserError, Vocab


@dataclasses.dataclass(frozen=True)
class SpanCorruption(ObjectiveConfig):
    """Reconstruct spans of a text that were replaced by sentinels."""

    noise_rate: Annotated[float, Range(0.0, 1.0, above=True, below=True)] = 0.15
    """fraction of a document's tokens that is removed"""
    mean_span: Annotated[float, Range(1)] = 3.0
    """mean length of a span, in tokens"""
    architecture: Literal["encoder_decoder", "decoder"] = "encoder_decoder"
    """an encoder for the input and a decoder for the target, or a decoder that reads the input, then the target"""
    input_len: Annotated[int, Range(2)] | None = None
    """tokens of input per sequence; None: the number for one document that fills the sequence. Packed documents need
    more: data.seq_len is always enough. Tokens that do not fit are truncated and counted as `span_input_cut`"""
    target_len: Annotated[int, Range(2)] | None = None
    """tokens of target per sequence; None: likewise. Tokens that do not fit are truncated and counted as `span_cut`"""
    label_smoothing: Rate = 0.0
    """probability mass that the target distribution spreads evenly over the vocabulary"""
    z_loss: NonNegative = 0.0
    """factor on (log Z)² of each prediction"""
    load_balance: NonNegative = 1e-2
    """factor on the load-balancing loss of each Switch layer, if the model has any"""

    def __post_init__(self):
        check_fields(self)

    def counts(self, length: int) -> tuple[int, int]:
        """For a document of this many tokens, the number of removed tokens and of spans."""
        noise = min(max(round(length * self.noise_rate), 1), length - 1)
        return noise, min(max(round(noise / self.mean_span), 1), length - noise)

    def lengths(self, length: int) -> tuple[int, int]:
        """For a document of this many tokens, the tokens of its input and target, end tokens included."""
        noise, spans = self.counts(length)
        return length - noise + spans + 1, noise + spans + 1

    def raw_length(self, input_len: int) -> int:
        """The longest document whose input fits into `input_len`, in tokens."""
        length = input_len
        while self.lengths(length + 1)[0] <= input_len:
            length += 1
        return length

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The configured one."""
        return (self.architecture,)

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise."""
        return frozenset(("span_accuracy", "word_accuracy"))

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective, for this vocabulary.

        Raises:
          UserError: it has no end token or pad token; or too few sentinels, which `prepare` finds out.
        """
        vocab.require("SpanCorruption", "eos", "pad")

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            length = batch["input_ids"].shape[1]
            _, spans = self.counts(length)
            if spans > len(vocab.sentinels):
                raise UserError(
                    f"SpanCorruption: a sequence of {length} tokens needs {spans} sentinels, the tokenizer has"
                    f" {len(vocab.sentinels)}; train it with more, or shorten data.seq_len or raise mean_span"
                )
            inputs, targets = self.lengths(length)
            counts = [self.counts(n) if n > 1 else (0, 1) for n in range(length + 1)]
            noised = select_noise_spans(key, batch, vocab, jnp.asarray(counts, jnp.int32))
            source = pack_side(noised, noised.in_input, noised.input_ids, vocab, self.input_len or inputs)
            target = pack_side(noised, noised.in_target, noised.target_ids, vocab, self.target_len or targets)
            rest = {name: array for name, array in batch.items() if array.ndim == 1}
            prepared = {
                "span_labels": target.ids,
                "span_weights": (target.segment_ids > 0).astype(jnp.float32),
                "span_words": target.is_word.astype(jnp.float32),
                "span_left": target.left,
                "span_cut": count_cut(noised, noised.in_target, target),
                "span_input_cut": count_cut(noised, noised.in_input, source),
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
            # A decoder reads all inputs of the sequence, then all targets; each document attends to its own.
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
            loss_fn = decoder_loss if self.architecture == "decoder" else encoder_decoder_loss
            settings = TokenLossConfig("span", self.label_smoothing, self.z_loss, self.load_balance)
            value = loss_fn(apply, params, batch, rng, settings)
            count = jnp.float32(batch["span_cut"].shape[0])
            cut = {name: Sum(jnp.sum(batch[name]), count) for name in ("span_cut", "span_input_cut")}
            return Loss(value.terms, value.metrics | cut)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            raise UserError("SpanCorruption has no predictions for single texts; use `bertgpt generate`")

        def targets(raw: Batch, prepared: Batch) -> Targets:
            del raw
            return Targets(prepared["span_left"], prepared["span_labels"], prepared["span_words"])

        return Objective(prepare, loss, predict, targets, target_metric="word")


class NoisedText(NamedTuple):
    """Sequences with the tokens of their texts moved to the front, and what replaces each; the rest has segment 0."""

    ids: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    noise: Bool[Array, "B S"]
    """the token is removed from the input"""
    input_ids: Int[Array, "B S"]
    """the token, or the sentinel of the removed span that begins here"""
    in_input: Bool[Array, "B S"]
    """whether the entry of `input_ids` is part of the input"""
    target_ids: Int[Array, "B S"]
    """the token, or the sentinel of the removed span that follows the text that begins here"""
    in_target: Bool[Array, "B S"]
    """whether the entry of `target_ids` is part of the target"""
    documents: Int[Array, " B"]
    """documents in each sequence"""


def select_noise_spans(key: Key[Array, ""], batch: Batch, vocab: Vocab, counts: Int[Array, "lengths 2"]) -> NoisedText:
    """Samples the spans to remove from every document; counts[n] is (tokens to remove, spans) for n tokens."""
    ids, segments = batch["input_ids"], batch["segment_ids"]
    text = is_text(ids, segments, vocab)
    order = jnp.argsort(~text, axis=1, stable=True)
    ids, segments = (jnp.take_along_axis(x, order, axis=1) for x in (ids, jnp.where(text, segments, 0)))
    index = jnp.arange(ids.shape[1])[None]
    lengths = count_by_document(segments >= 0, segments)
    n = jnp.take_along_axis(lengths, segments, axis=1)
    starts = is_first(segments)
    first = running_max(jnp.where(starts, index, 0))
    offset = index - first
    num_removed, spans = counts[n, 0], counts[n, 1]
    # Sample the cuts: number the kept tokens of a document 0 … n − N − 1, then the removed ones 0 … N − 1, and choose
    # K − 1 of the positions after the first of each kind. Part k of the kept tokens then precedes part k of the others.
    removed = offset >= n - num_removed
    group = 2 * segments + removed
    begins = is_first(group)
    noise = jnp.where(begins, 2.0, jax.random.uniform(key, ids.shape))  # never cut before the first of a kind
    cut = (rank_within(group, noise) < spans - 1) & ~begins & (segments > 0)
    part = jnp.cumsum(cut, axis=1)
    part = part - running_max(jnp.where(begins, part, 0))
    merged = jnp.lexsort((2 * part + removed, first))
    noise_mask = jnp.take_along_axis(removed, merged, axis=1) & (segments > 0)

    before = jnp.roll(noise_mask, 1, axis=1) & ~starts
    noise_starts = noise_mask & ~before
    text_starts = ~noise_mask & (before | starts) & (segments > 0) & (n > 1)
    number = jnp.cumsum(noise_starts, axis=1)
    base = running_max(jnp.where(starts, number - noise_starts, 0))
    sentinels = jnp.asarray(vocab.sentinels, ids.dtype)
    # The span that begins here has index number − 1; the one after the text that begins here has the next index.
    input_ids = jnp.where(noise_starts, sentinels[number - 1 - base], ids)
    target_ids = jnp.where(noise_mask, ids, sentinels[number - base])
    kept = (segments > 0) & (~noise_mask | noise_starts)
    return NoisedText(
        ids, segments, noise_mask, input_ids, kept, target_ids, noise_mask | text_starts,
        jnp.sum(starts & (segments > 0), axis=1, dtype=jnp.int32),
    )  # fmt: skip


class PackedSide(NamedTuple):
    """The inputs or the targets of packed documents, each followed by an end token."""

    ids: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    is_word: Bool[Array, "B T"]
    """a token of the text: neither a sentinel nor an end token"""
    left: Int[Array, "B T"]
    """for tokens of the text, the token to their left in the text"""
    document_lengths: Int[Array, "B segments"]
    """tokens of each document of the sequence"""


def pack_side(
    noised: NoisedText, chosen: Bool[Array, "B S"], ids: Int[Array, "B S"], vocab: Vocab, length: int
) -> PackedSide:
    """Concatenates the chosen ids, with an end token after each document, and truncates them to `length`.

    Args:
      noised: the documents.
      chosen: entries of `ids` to keep.
      ids: tokens and sentinels of one side.
      vocab: gives the end token and the pad token.
      length: tokens of a sequence, T.

    Returns:
      The packed sequences; padding has segment 0.
    """
    segments = noised.segment_ids
    rows, size = segments.shape
    row = jnp.arange(rows)[:, None]
    ends = is_first(segments[:, ::-1])[:, ::-1] & (segments > 0)
    starts = is_first(segments) & (segments > 0)
    nth = jnp.cumsum(starts, axis=1)  # number of the document in the sequence, from 1
    count = jnp.cumsum(chosen, axis=1)
    to = jnp.where(chosen, count - 1 + nth - 1, length)  # the documents before have an end token each
    to_end = jnp.where(ends, count + nth - 1, length)
    is_word = chosen & noised.noise & (ids == noised.ids)
    values = {
        "ids": (ids, jnp.full_like(ids, vocab.eos)),
        "segment_ids": (segments, segments),
        "is_word": (is_word, jnp.zeros_like(is_word)),
        "left": (jnp.roll(noised.ids, 1, axis=1), jnp.zeros_like(ids)),
    }
    placed = {}
    for name, (inner, end) in values.items():
        empty = jnp.full((rows, length), vocab.pad if name == "ids" else 0, inner.dtype)
        placed[name] = empty.at[row, to].set(inner, mode="drop").at[row, to_end].set(end, mode="drop")
    segment_ids = placed["segment_ids"]
    index = jnp.arange(length)[None]
    first = running_max(jnp.where(is_first(segment_ids), index, 0))
    lengths = jnp.zeros((rows, size + 1), jnp.int32).at[row, segment_ids].add(1)
    return PackedSide(
        placed["ids"],
        segment_ids,
        (index - first) * (segment_ids > 0),
        placed["is_word"],
        placed["left"],
        lengths,
    )


def is_text(ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], vocab: Vocab) -> Bool[Array, "B S"]:
    """True for all tokens but padding, [CLS] or bos at the start of a document, and [SEP] or eos at its end."""
    starts, ends = (
        jnp.asarray([i for i in around if i is not None], jnp.int32)
        for around in ((vocab.cls, vocab.bos), (vocab.sep, vocab.eos))
    )
    template = is_first(segment_ids) & jnp.isin(ids, starts)
    template |= is_first(segment_ids[:, ::-1])[:, ::-1] & jnp.isin(ids, ends)
    return (segment_ids > 0) & ~template


def count_cut(noised: NoisedText, chosen: Bool[Array, "B S"], packed: PackedSide) -> Int[Array, " B"]:
    """How many of the chosen tokens and the end tokens do not fit into a side."""
    return jnp.sum(chosen, axis=1) + noised.documents - jnp.sum(packed.segment_ids > 0, axis=1)


def is_first(groups: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """True where a group begins."""
    return jnp.concatenate([jnp.ones_like(groups[:, :1], bool), groups[:, 1:] != groups[:, :-1]], axis=1)


def rank_within(groups: Int[Array, "B S"], noise: Float[Array, "B S"]) -> Int[Array, "B S"]:
    """Rank of each token, from 0, by its noise within its group of consecutive tokens with the same number."""
    index = jnp.arange(groups.shape[1])[None]
    first = running_max(jnp.where(is_first(groups), index, 0))
    order = jnp.lexsort((noise, first))
    rank = jnp.zeros_like(order).at[jnp.arange(groups.shape[0])[:, None], order].set(index + jnp.zeros_like(order))
    return rank - first
