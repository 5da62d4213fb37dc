"""Datasets over a token store: which tokens make up each sequence. Tokens are gathered batch by batch.

Index arrays are built first; `gather` reads the tokens of a whole batch with one fancy index. A batch holds, as int32
[batch, sequence], `input_ids`; `segment_ids` (0 padding; 1, 2, … the segment within the sequence, which attention and
masking do not leave); `positions` (from 0 in each segment); `type_ids` (sentence A 0, B 1). Pairs also hold
`pair_label` [batch]. `Batches` adds `row` and `epoch`.

This module holds documents that are concatenated (ConcatDataset) or packed (PackedDataset). `streams`: text without
regard to documents, and whole sentences. `pairs`: two segments in a sequence.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from bertgpt.data.store import Store
from bertgpt.types import TEXT_SPEC, Batch, BatchSpec, DataWarning, Vocab

TEMPLATE = ("a sequence of [CLS] text [SEP]", "cls", "sep", "pad")


class Template(NamedTuple):
    """The special tokens around a text: [CLS] … [SEP] of encoders, bos … eos of decoders, … eos of T5, without bos."""

    start: tuple[int, ...]
    """one id or none"""
    end: int
    pad: int
    """id of padding, where segment_ids are 0: eos if there is no pad token (GPT-2)"""

    def count(self) -> int:
        """Number of special tokens."""
        return len(self.start) + 1


def template_of(vocab: Vocab) -> Template:
    """The special-token template that a vocabulary has tokens for.

    Raises:
      UserError: it has neither [CLS] and [SEP] nor eos, or neither pad nor eos.
    """
    if vocab.cls is not None and vocab.sep is not None:
        start, end = (vocab.cls,), vocab.sep
    else:
        if vocab.eos is None:
            vocab.require(*TEMPLATE[:3])
        start, end = () if vocab.bos is None else (vocab.bos,), vocab.eos
    return Template(start, end, pad_of(vocab, TEMPLATE[0]))


def pad_of(vocab: Vocab, user: str) -> int:
    """The id of padding: pad, else eos. Raises UserError, in the name of `user`, if there is neither."""
    if vocab.eos is None:
        vocab.require(user, "pad")
    return vocab.eos if vocab.pad is None else vocab.pad


def token_ends(store: Store) -> Int[np.ndarray, " documents"]:
    """Where each document ends, in tokens."""
    return np.asarray(store.sentence_ends[np.asarray(store.document_ends) - 1])


class Pieces(NamedTuple):
    """Spans of text that make up the sequences of a batch, in order; every sequence has at least one."""

    row: Int[np.ndarray, " K"]
    """sequence of the batch"""
    source: Int[np.ndarray, " K"]
    """index in the store of the piece's first position; one less than that of its first token if it is led"""
    width: Int[np.ndarray, " K"]
    """tokens, special ones included"""
    led: Bool[np.ndarray, " K"]
    """its first token is template.start"""
    closed: Bool[np.ndarray, " K"]
    """its last token is template.end"""


def lay_out(store: Store, template: Template, seq_len: int, pieces: Pieces, apart: bool) -> Batch:
    """Packs pieces into sequences of `seq_len`; with `apart`, each is a segment with positions of its own.

    Within a piece, (position in the batch) − (index in the store) is constant. So all pieces are filled at once: one
    `repeat` of that difference over the widths, and one fancy index.
    """
    bounds = np.searchsorted(pieces.row, np.arange(pieces.row[-1] + 2))
    used = np.add.reduceat(pieces.width, bounds[:-1])
    widths = pieces.width.copy()
    widths[bounds[1:] - 1] += seq_len - used  # the last piece of a sequence also takes the padding, overwritten below
    begin = np.cumsum(widths) - widths
    shape = (len(used), seq_len)
    source = np.repeat(pieces.source - begin, widths)
    source += np.arange(source.size)
    np.clip(source, 0, len(store.tokens) - 1, out=source)  # special tokens and padding may point outside
    ids = np.asarray(store.tokens[source]).astype(np.int32)
    if template.start:
        ids[begin[pieces.led]] = template.start[0]
    ids[(begin + pieces.width - 1)[pieces.closed]] = template.end
    ids = ids.reshape(shape)
    position = np.arange(seq_len, dtype=np.int32)
    real = position < used[:, None]
    if apart:
        nth = (np.arange(len(widths)) - bounds[pieces.row]).astype(np.int32)
        segments = np.repeat(nth + np.int32(1), widths).reshape(shape) * real
        offset = (begin - pieces.row * seq_len).astype(np.int32)
        positions = (position - np.repeat(offset, widths).reshape(shape)) * real
    else:
        segments, positions = real.astype(np.int32), position * real
    return {
        "input_ids": ids if real.all() else np.where(real, ids, np.int32(template.pad)),
        "segment_ids": segments,
        "positions": positions,
        "type_ids": np.zeros(shape, np.int32),
    }


def ranges(
    first: Int[np.ndarray, " B"], count: Int[np.ndarray, " B"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """(b, first[b] + i) for every b and 0 ≤ i < count[b], in order."""
    before = np.cumsum(count) - count
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) + np.repeat(first - before, count)


def overlaps(
    ends: Int[np.ndarray, " documents"], begin: Int[np.ndarray, " B"], stop: Int[np.ndarray, " B"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"], Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Intersections of spans [begin, stop) with documents: (span, document, first token, end), in order."""
    first = np.searchsorted(ends, begin, side="right")
    row, document = ranges(first, np.searchsorted(ends, stop - 1, side="right") + 1 - first)
    starts = np.where(document > 0, ends[document - 1], 0)
    return row, document, np.maximum(starts, begin[row]), np.minimum(ends[document], stop[row])


def begins_sequence(row: Int[np.ndarray, " K"]) -> Bool[np.ndarray, " K"]:
    """True for the first piece of each sequence."""
    return np.diff(row, prepend=-1) > 0


def cut(
    starts: Int[np.ndarray, " N"], ends: Int[np.ndarray, " N"], width: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """(start, end) of the pieces of at most `width` tokens that each span is cut into."""
    span, nth = ranges(np.zeros_like(starts), -(-(ends - starts) // width))
    start = starts[span] + nth * width
    return start, np.minimum(start + width, ends[span])


class StoreDataset:
    """What all datasets over one split of a token store share."""

    spec: BatchSpec = TEXT_SPEC
    warnings: tuple[DataWarning, ...] = ()
    padding: float
    """fraction of all positions that is padding"""

    def __init__(self, store: Store, vocab: Vocab, seq_len: int, template: Template):
        self.store, self.vocab, self.seq_len, self.template = store, vocab, seq_len, template

    def training_tokens(self) -> tuple[Int[np.ndarray, " N"], int]:
        """(the text, with the token that ends a document after each document; vocabulary size)."""
        tokens = np.asarray(self.store.tokens).astype(np.int64)
        return np.insert(tokens, token_ends(self.store), self.template.end), self.vocab.size


class ConcatDataset(StoreDataset):
    """All documents one after another, [SEP] after each, cut into [CLS] + S − 1 tokens, even inside a sentence.

    The last sequence is padded, so no token is lost. One segment: attention crosses documents.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int):
        vocab.require(*TEMPLATE)
        super().__init__(store, vocab, seq_len, template_of(vocab))
        ends = token_ends(store)
        self.stream_ends = ends + np.arange(1, len(ends) + 1)  # each document is longer by its [SEP]
        self.padding = 1.0 - (float(self.stream_ends[-1]) + len(self)) / (len(self) * seq_len)

    def __len__(self) -> int:
        return -(-int(self.stream_ends[-1]) // (self.seq_len - 1))

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        begin = indices * (self.seq_len - 1)
        stop = np.minimum(begin + self.seq_len - 1, self.stream_ends[-1])
        row, document, first, last = overlaps(self.stream_ends, begin, stop)
        led = begins_sequence(row)
        # Up to document d the stream has d tokens of [SEP] more than the store.
        pieces = Pieces(row, first - document - led, last - first + led, led, last == self.stream_ends[document])
        return lay_out(self.store, self.template, self.seq_len, pieces, apart=False)


class PackedDataset(StoreDataset):
    """Documents cut into chunks, [CLS] chunk [SEP] of at most S tokens, packed by best fit, longest first.

    Every chunk is a segment of its own: attention, positions and masking do not cross it. With tokenizers that lack
    [CLS] and [SEP], the template is bos and eos.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int):
        super().__init__(store, vocab, seq_len, template_of(vocab))
        ends = token_ends(store)
        start, end = cut(np.concatenate([[0], ends[:-1]]), ends, seq_len - self.template.count())
        width = end - start + self.template.count()
        row = best_fit(width, seq_len)
        order = np.argsort(row, kind="stable")
        self.start, self.width = start[order], width[order]
        self.row_ends = np.cumsum(np.bincount(row))
        self.padding = 1.0 - float(width.sum()) / (len(self) * seq_len)

    def __len__(self) -> int:
        return len(self.row_ends)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        first = np.where(indices > 0, self.row_ends[indices - 1], 0)
        row, chunk = ranges(first, self.row_ends[indices] - first)
        every = np.ones(len(row), bool)
        source = self.start[chunk] - len(self.template.start)
        return lay_out(
            self.store, self.template, self.seq_len, Pieces(row, source, self.width[chunk], every, every), apart=True
        )


def best_fit(lengths: Int[np.ndarray, " N"], capacity: int) -> Int[np.ndarray, " N"]:
    """Packed sequence of each item: longest items first, each into the fullest sequence that still has room.

    grain's packing (grain.experimental: FirstFit, BestFit) fills a few open bins from a stream of token arrays, so the
    content of sequence r depends on all that was read before it and on a window. Here only lengths are packed, before
    any token is read: sequence r can be gathered directly, is the same in every run, and all lengths are considered
    together.
    """
    rows = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[int]] = defaultdict(list)  # room left → sequences
    rooms = 0  # bit r is set if some sequence has room r
    count = 0
    for item in np.argsort(-lengths, kind="stable"):
        need = int(lengths[item])
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms &= ~(1 << room)
        else:
            room, row, count = capacity, count, count + 1
        rows[item] = row
        open_rows[room - need].append(row)
        rooms |= 1 << (room - need)
    return rows
