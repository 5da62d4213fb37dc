"""Rows over a token store: which tokens make up row r. Index arrays are built first, tokens are gathered per batch.

Each kind of rows has a length and `gather(rows) → batch`, one fancy index for the whole batch. A batch holds, as int32
[B, S]:
  input_ids; segment_ids (0 padding, 1, 2, … the document within the row); positions (from 0 in each segment);
  type_ids (sentence A 0, B 1); and for pairs `pair_label` [B] (0: B follows A, 1: B is random).
"""

import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer

from bertgpt.config import Vocab
from bertgpt.data.store import Store

Batch = dict[str, np.ndarray]
FRAME = ("a row of [CLS] text [SEP]", "cls", "sep", "pad")


def token_ends(store: Store) -> Int[np.ndarray, " documents"]:
    """Where each document ends, in tokens."""
    return np.asarray(store.sentence_ends)[np.asarray(store.document_ends) - 1]


class ConcatRows:
    """All documents one after another, [SEP] after each, cut into rows of [CLS] + S − 1 (RoBERTa's full sentences).

    The last row is padded, so no token is lost.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int):
        vocab.require(*FRAME)
        self.store, self.vocab, self.seq_len = store, vocab, seq_len
        ends = token_ends(store)
        self.stream_ends = ends + np.arange(1, len(ends) + 1)  # each document is longer by its [SEP]

    def __len__(self) -> int:
        return -(-int(self.stream_ends[-1]) // (self.seq_len - 1))

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        at = rows[:, None] * (self.seq_len - 1) + np.arange(-1, self.seq_len - 1)  # column −1 is [CLS]
        real = at < self.stream_ends[-1]
        at = np.clip(at, 0, self.stream_ends[-1] - 1)
        document = np.searchsorted(self.stream_ends, at, side="right")
        token = self.store.tokens[np.minimum(at - document, len(self.store.tokens) - 1)]
        ids = np.where(at == self.stream_ends[document] - 1, self.vocab.sep, token)
        ids[:, 0] = self.vocab.cls
        return _batch(np.where(real, ids, self.vocab.pad), real.astype(np.int32), np.arange(self.seq_len) * real)


class PackedRows:
    """Documents cut into [CLS] chunk [SEP] of at most S tokens, packed into rows by best fit, longest first.

    Every chunk is a segment of its own: attention, positions and masking do not cross it.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int):
        vocab.require(*FRAME)
        self.store, self.vocab, self.seq_len = store, vocab, seq_len
        ends = token_ends(store)
        starts = np.concatenate([[0], ends[:-1]])
        width = seq_len - 2
        pieces = -(-(ends - starts) // width)  # chunks of each document
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        start = np.repeat(starts, pieces) + nth * width
        length = np.minimum(np.repeat(ends, pieces) - start, width)
        row = best_fit(length + 2, seq_len)
        order = np.argsort(row, kind="stable")
        self.start, self.length = start[order], length[order]
        self.row_ends = np.cumsum(np.bincount(row))
        self.padding = 1.0 - float((length + 2).sum()) / (len(self) * seq_len)

    def __len__(self) -> int:
        return len(self.row_ends)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        first = np.where(rows > 0, self.row_ends[rows - 1], 0)
        count = self.row_ends[rows] - first
        slot = np.arange(count.max())
        used = slot < count[:, None]
        chunk = np.minimum(first[:, None] + slot, len(self.start) - 1)
        width = np.where(used, self.length[chunk] + 2, 0)  # [B, chunks]
        ends = np.cumsum(width, axis=1)
        at = np.arange(self.seq_len)
        segment = (at >= ends[:, :, None]).sum(axis=1)  # [B, S]: chunks that end at or before this place
        real = at < ends[:, -1:]
        mine = np.minimum(segment, len(slot) - 1)
        offset = at - np.take_along_axis(ends - width, mine, axis=1)
        length = np.take_along_axis(width, mine, axis=1) - 2
        source = np.take_along_axis(self.start[chunk], mine, axis=1) + np.clip(offset - 1, 0, np.maximum(length - 1, 0))
        ids = np.where(
            offset == 0, self.vocab.cls, np.where(offset == length + 1, self.vocab.sep, self.store.tokens[source])
        )
        return _batch(np.where(real, ids, self.vocab.pad), (segment + 1) * real, offset * real)


def best_fit(lengths: Int[np.ndarray, " N"], capacity: int) -> Int[np.ndarray, " N"]:
    """Row of each item: longest items first, each into the fullest row that still has room."""
    rows = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[int]] = defaultdict(list)  # room left → rows
    rooms = 0  # bit r is set if some row has room r
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


class PairRows:
    """[CLS] A [SEP] B [SEP], built as BERT's data recipe builds them (google-research/bert, create_pretraining_data).

    Sentences of a document are gathered up to the target length and divided at random into A and B; half the time, and
    whenever there is only one, B is instead text of another document, and the sentences not used are put back. Pairs
    that are too long lose tokens of the longer side, from its front or its back at random. `duplicates` passes over the
    text, each with its own chance, make up one index.
    """

    def __init__(
        self,
        store: Store,
        vocab: Vocab,
        seq_len: int,
        *,
        short_seq_prob: float,
        duplicates: int,
        seed: int,
        cache: Path | None = None,
    ):
        vocab.require(*FRAME)
        self.store, self.vocab, self.seq_len = store, vocab, seq_len
        if cache is not None and cache.exists():
            self.pairs = np.load(cache, mmap_mode="r")
            return
        passes = [
            build_pairs(store, seq_len - 3, short_seq_prob, random.Random(f"{seed}/{n}")) for n in range(duplicates)
        ]
        self.pairs = np.concatenate(passes)
        if cache is not None:
            partial = cache.with_name(f".{cache.stem}.{os.getpid()}.partial.npy")
            np.save(partial, self.pairs)
            os.replace(partial, cache)

    def __len__(self) -> int:
        return len(self.pairs)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        a_start, a_len, b_start, b_len, label = (column[:, None] for column in np.asarray(self.pairs[rows]).T)
        at = np.arange(self.seq_len)
        in_b = at >= a_len + 2  # after [CLS] A [SEP]
        source = np.where(in_b, b_start + at - a_len - 2, a_start + at - 1)
        ids = self.store.tokens[np.clip(source, 0, len(self.store.tokens) - 1)].astype(np.int32)
        end = a_len + b_len + 2
        ids = np.where((at == a_len + 1) | (at == end), self.vocab.sep, np.where(at == 0, self.vocab.cls, ids))
        real = at <= end
        batch = _batch(np.where(real, ids, self.vocab.pad), real.astype(np.int32), at * real)
        return batch | {"type_ids": (in_b & real).astype(np.int32), "pair_label": label[:, 0].astype(np.int32)}


def build_pairs(store: Store, max_tokens: int, short_seq_prob: float, rng: random.Random) -> Int[np.ndarray, "N 5"]:
    """One pass over a store: (a_start, a_len, b_start, b_len, label) of each pair, in tokens."""
    ends = np.asarray(store.sentence_ends).tolist()
    starts = [0, *ends[:-1]]
    documents = np.asarray(store.document_ends).tolist()
    pairs: list[tuple[int, int, int, int, int]] = []
    chance, pick = rng.random, rng.randrange
    for document, last in enumerate(documents):
        i = documents[document - 1] if document else 0
        target = pick(2, max_tokens + 1) if chance() < short_seq_prob else max_tokens
        while i < last:
            stop = i + 1
            while stop < last and ends[stop - 1] - starts[i] < target:
                stop += 1
            middle = i + 1 if stop - i < 2 else pick(i + 1, stop)
            a_start, a_len = starts[i], ends[middle - 1] - starts[i]
            label = int(stop - i == 1 or chance() < 0.5)
            if label:
                # With a single document, “another document” can only be another place of the same one.
                other = document
                while other == document and len(documents) > 1:
                    other = pick(len(documents))
                begin = pick(documents[other - 1] if other else 0, documents[other])
                until = begin + 1
                while until < documents[other] and ends[until - 1] - starts[begin] < target - a_len:
                    until += 1
                b_start, b_len = starts[begin], ends[until - 1] - starts[begin]
                stop = middle  # the rest of the chunk goes back
            else:
                b_start, b_len = starts[middle], ends[stop - 1] - starts[middle]
            if a_len + b_len > max_tokens:
                a_start, a_len, b_start, b_len = _truncate(a_start, a_len, b_start, b_len, max_tokens, rng)
            pairs.append((a_start, a_len, b_start, b_len, label))
            i = stop
    return np.array(pairs, np.int64).reshape(-1, 5)


def _truncate(
    a_start: int, a_len: int, b_start: int, b_len: int, most: int, rng: random.Random
) -> tuple[int, int, int, int]:
    """Cuts tokens one by one, always from the longer side (B if equal), each from front or back with equal chance."""
    excess = a_len + b_len - most
    level = min(excess, abs(a_len - b_len))  # first the longer side comes down to the other
    cut_a, cut_b = (level, 0) if a_len > b_len else (0, level)
    cut_a, cut_b = cut_a + (excess - level) // 2, cut_b + (excess - level + 1) // 2  # then they take turns
    front_a, front_b = ((rng.getrandbits(cut).bit_count() if cut else 0) for cut in (cut_a, cut_b))
    return a_start + front_a, a_len - cut_a, b_start + front_b, b_len - cut_b


class TextRows:
    """One text in each row, [CLS] text [SEP], cut to the first S − 2 tokens; `extra` holds more values of each row."""

    def __init__(self, ids: list[list[int]], vocab: Vocab, seq_len: int, extra: Batch):
        vocab.require(*FRAME)
        self.lengths = np.array([min(len(row), seq_len - 2) + 2 for row in ids], np.int32)
        self.table = np.full((len(ids), seq_len), vocab.pad, np.int32)
        self.extra = extra
        for row, length, out in zip(ids, self.lengths, self.table, strict=True):
            out[:length] = [vocab.cls, *row[: length - 2], vocab.sep]

    def __len__(self) -> int:
        return len(self.table)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        at = np.arange(self.table.shape[1])
        real = at < self.lengths[rows, None]
        return _batch(self.table[rows], real, at * real) | {name: value[rows] for name, value in self.extra.items()}


def _batch(
    ids: Integer[np.ndarray, "B S"],
    segments: Int[np.ndarray, "B S"] | Bool[np.ndarray, "B S"],
    positions: Int[np.ndarray, "B S"],
) -> Batch:
    named = {
        "input_ids": ids,
        "segment_ids": segments,
        "positions": positions,
        "type_ids": np.zeros(ids.shape, np.int32),
    }
    return {name: np.ascontiguousarray(array, np.int32) for name, array in named.items()}
