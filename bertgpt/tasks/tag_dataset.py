"""Tagged sentences as rows of tokens: first-subword alignment, windows over long sentences, packing.

A *window* is a stretch of a sentence that fits into a row, in the template of the tokenizer. Of the words in it some are
only context: each word of a sentence is decided in exactly one window. A row holds one window, or with packing several,
each a segment with positions of its own, so that nothing passes between them; or neighbours in a document share one.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.packing import best_fit, template_of
from bertgpt.data.sources.conll import Sentence, Tally
from bertgpt.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
FIRST, LAST = 1, 2  # bits of `edges`
CUT = "words are cut off and not looked at, for their sentences exceed seq_len (stride > 0 keeps them)"
BLIND = "windows of long sentences do not hold their predicate"
UNSEEN = "words have tags that are not among the labels of training, and count as wrong"
LONG = "words are longer than a row and lose their ends"
NO_PIECES = "words are nothing to the tokenizer and stand as unknown"


class Window(NamedTuple):
    """Words begin … end − 1 of a sentence in one segment, of which first … last − 1 are decided here."""

    sentence: int
    begin: int
    end: int
    first: int
    last: int


class TaggedDataset:
    """Rows of windows. A batch holds, beside the arrays of `data.pack`, as int32 [B, W]:

      word_positions  place in the row of the first piece of each word to decide
      chains          which window of the row the word is of, 1, 2, …; 0: there is no word
      edges           1: the word begins its sentence, 2: ends it, 3: both
      tags            number of the word's tag; −1 if it is not among the labels, or there is no word

    The pieces of a predicate, or with `capitals` of words that begin with a capital letter, have type 1, all others 0.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        seq_len: int,
        *,
        stride: int,
        packed: bool,
        documents: bool,
        capitals: bool,
        tally: Tally,
    ):
        """Arguments as the fields of `TokenTagging`; `tally` counts what is cut, unknown or unseen, for the notes."""
        self.sentences, self.template, self.capitals = sentences, template_of(tokenizer.vocab), capitals
        self.sources: Sequence[Any] = ()  # of sentences to predict, where they come from
        room = seq_len - self.template.count()
        pieces = pieces_of(sentences, tokenizer, room, tally)
        self.windows: list[Window] = []
        for number, sentence in enumerate(sentences):
            found = windows(number, [len(pieces[word]) for word in sentence.words], room, stride)
            if found[-1].last < len(sentence.words):
                tally.add(CUT, sentence.place(found[-1].last), len(sentence.words) - found[-1].last)
            at = sentence.predicate
            if at is not None and (blind := sum(not window.begin <= at < window.end for window in found)):
                tally.add(BLIND, sentence.place(at), blind)
            self.windows += found
        groups = self._grouped(pieces, room if documents else 0)
        sizes = np.array([self.template.count() + size for _, size in groups], np.int64)
        places = best_fit(sizes, seq_len) if packed else np.arange(len(sizes))
        self.row = np.repeat(places, [len(members) for members, _ in groups])  # of each window
        self.slot = np.zeros(len(self.row), np.int64)  # of each window's first word, among the words of its row
        self.padding = 1.0 - float(sizes.sum()) / max(len(self) * seq_len, 1)
        self._fill(groups, pieces, seq_len, {label: i for i, label in enumerate(labels)}, tally)
        self.notes = tally.notes
        if packed and len(sizes):
            apart = 1.0 - float(sizes.mean()) / seq_len
            self.notes += (
                f"{len(sizes):,} segments are packed into {len(self):,} rows: {self.padding:.1%} of the places are"
                f" padding, one to a row {apart:.1%}",
            )

    def __len__(self) -> int:
        return int(self.row.max(initial=-1)) + 1

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        return {name: table[rows] for name, table in self.tables.items()}

    def predicted(self, tags: Int[np.ndarray, "R W"], labels: Sequence[str], other: str) -> list[list[str]]:
        """The tag of each word of each sentence, from those of all rows; `other` for words that were cut off."""
        found = [[other] * len(sentence.words) for sentence in self.sentences]
        for window, row, slot in zip(self.windows, self.row, self.slot, strict=True):
            chosen = tags[row, slot : slot + window.last - window.first]
            found[window.sentence][window.first : window.last] = [labels[tag] for tag in chosen]
        return found

    def _grouped(self, pieces: dict[str, list[int]], room: int) -> list[tuple[range, int]]:
        """(numbers of windows, their pieces together) of each segment: neighbours of a document that fit `room`."""
        found: list[tuple[range, int]] = []
        before = None
        for number, window in enumerate(self.windows):
            sentence, size = self.sentences[window.sentence], len(self._ids(window, pieces))
            document = None if sentence.document is None else (sentence.file, sentence.document)
            if document is not None and document == before and found[-1][1] + size <= room:
                members, total = found[-1]
                found[-1] = range(members.start, number + 1), total + size
            else:
                found.append((range(number, number + 1), size))
            before = document
        return found

    def _ids(self, window: Window, pieces: dict[str, list[int]]) -> list[int]:
        words = self.sentences[window.sentence].words[window.begin : window.end]
        return list(itertools.chain.from_iterable(pieces[word] for word in words))

    def _fill(
        self,
        groups: Sequence[tuple[range, int]],
        pieces: dict[str, list[int]],
        seq_len: int,
        numbers: dict[str, int],
        tally: Tally,
    ) -> None:
        decided = [window.last - window.first for window in self.windows]
        width = int(np.bincount(self.row, decided).max(initial=1))
        shapes = {"input_ids": seq_len, "segment_ids": seq_len, "positions": seq_len, "type_ids": seq_len}
        shapes |= {"word_positions": width, "chains": width, "edges": width, "tags": width}
        self.tables: Batch = {name: np.zeros((len(self), columns), np.int32) for name, columns in shapes.items()}
        self.tables["input_ids"][:] = self.template.pad
        self.tables["tags"][:] = -1
        used, segments, words, chains = ([0] * len(self) for _ in range(4))
        for members, _ in groups:
            row = int(self.row[members.start])
            ids = list(self.template.start)
            for number in members:
                window = self.windows[number]
                chains[row] += 1
                self.slot[number] = words[row]
                self._fill_words(window, row, words[row], used[row] + len(ids), chains[row], pieces)
                there = slice(words[row], words[row] + window.last - window.first)
                self.tables["tags"][row, there] = numbers_of(self.sentences[window.sentence], window, numbers, tally)
                words[row] = there.stop
                ids += self._ids(window, pieces)
            ids.append(self.template.end)
            segments[row] += 1
            here = slice(used[row], used[row] + len(ids))
            self.tables["input_ids"][row, here] = ids
            self.tables["segment_ids"][row, here] = segments[row]
            self.tables["positions"][row, here] = np.arange(len(ids))
            used[row] = here.stop

    def _fill_words(
        self, window: Window, row: int, slot: int, start: int, chain: int, pieces: dict[str, list[int]]
    ) -> None:
        """The words of a window whose first piece is at `start` and whose first word to decide is number `slot`."""
        sentence = self.sentences[window.sentence]
        if window.first == window.last:  # of an empty text
            return
        lengths = np.array([len(pieces[word]) for word in sentence.words[window.begin : window.end]])
        starts = start + np.cumsum(lengths) - lengths
        for number in range(window.begin, window.end):
            if number == sentence.predicate or self.capitals and sentence.words[number][:1].isupper():
                at = number - window.begin
                self.tables["type_ids"][row, starts[at] : starts[at] + lengths[at]] = 1
        there = slice(slot, slot + window.last - window.first)
        self.tables["word_positions"][row, there] = starts[window.first - window.begin : window.last - window.begin]
        self.tables["chains"][row, there] = chain
        self.tables["edges"][row, there.start] |= FIRST if window.first == 0 else 0
        self.tables["edges"][row, there.stop - 1] |= LAST if window.last == len(sentence.words) else 0


def numbers_of(sentence: Sentence, window: Window, numbers: dict[str, int], tally: Tally) -> list[int]:
    """Numbers of the tags of the words that are decided; −1, and counted, for tags that have none."""
    if not sentence.tags:
        return [-1] * (window.last - window.first)
    found = [numbers.get(tag, -1) for tag in sentence.tags[window.first : window.last]]
    if -1 in found:
        tally.add(UNSEEN, sentence.place(window.first + found.index(-1)), found.count(-1))
    return found


def pieces_of(sentences: Sequence[Sentence], tokenizer: Tokenizer, room: int, tally: Tally) -> dict[str, list[int]]:
    """Ids of each word, `room` at most; at least one, so that every word has a state.

    Each word is encoded on its own, after a space: to byte-level BPE and SentencePiece the space is part of the word,
    to WordPiece it is nothing.
    """
    places = {word: (sentence, i) for sentence in sentences for i, word in enumerate(sentence.words)}
    words = list(places)
    found = dict(zip(words, tokenizer.encode([f" {word}" for word in words]), strict=True))
    vocab = tokenizer.vocab
    unknown = next(i for i in (vocab.unk, vocab.pad, vocab.eos, 0) if i is not None)
    for word, ids in found.items():
        if not ids:
            sentence, number = places[word]
            tally.add(NO_PIECES, sentence.place(number))
            ids.append(unknown)
        if len(ids) > room:
            sentence, number = places[word]
            tally.add(LONG, sentence.place(number))
            del ids[room:]
    return found


def windows(sentence: int, lengths: Sequence[int], room: int, stride: int) -> list[Window]:
    """The windows of a sentence of words with these numbers of pieces, at least 1 and at most `room` each.

    Args:
      sentence: its number.
      lengths: pieces of each word.
      room: pieces that fit into a window.
      stride: neighbouring windows share as many words as have at most this many pieces together, and each word is
        decided where the shorter of its two sides of context is longest (as Devlin et al. do for answers). 0: there is
        one window, and words that do not fit into it are decided nowhere.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    count = len(ends)
    if not count:
        return [Window(sentence, 0, 0, 0, 0)]
    spans: list[tuple[int, int]] = []
    begin = 0
    while True:
        end = int(np.searchsorted(ends, starts[begin] + room, side="right"))
        spans.append((begin, end))
        if end == count or not stride:
            break
        # As far back as the stride reaches, but so that the next word fits too.
        shared = np.searchsorted(starts, ends[end - 1] - stride)
        fits = np.searchsorted(starts, ends[end] - room)
        begin = int(max(begin + 1, shared, fits))
    decided_by = np.zeros(count, np.int64)
    best = np.full(count, -1)
    for number, (begin, end) in enumerate(spans):
        words = slice(begin, end)
        context = np.minimum(starts[words] - starts[begin], ends[end - 1] - ends[words])
        better = context > best[words]
        best[words] = np.where(better, context, best[words])
        decided_by[words] = np.where(better, number, decided_by[words])
    covered = decided_by[: spans[-1][1]]  # in order: context grows to the middle of a window and falls after it
    found = []
    for number, (begin, end) in enumerate(spans):
        first, last = (int(np.searchsorted(covered, number, side)) for side in ("left", "right"))
        if first < last:
            found.append(Window(sentence, begin, end, first, last))
    return found
