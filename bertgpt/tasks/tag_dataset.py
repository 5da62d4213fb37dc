"""Tagged sentences as token sequences: first-subword alignment, windows over long sentences, packing.

A *window* is a part of a sentence that fits into a sequence, within the special-token template of the tokenizer. Some
of its words are only context: each word of a sentence is predicted in exactly one window. A sequence holds one window,
or with packing several, each a segment with positions of its own, so that attention does not cross them; or
neighbouring sentences of a document share a segment.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.packing import best_fit, template_of
from bertgpt.data.sources.conll import Sentence, WarningCounter
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import TEXT_SPEC, Batch, BatchSpec, DataWarning, Field

FIRST, LAST = 1, 2  # bits of `edges`
CUT = "words are beyond seq_len and not predicted (set stride > 0 to read long sentences in windows)"
BLIND = "windows of long sentences do not contain their predicate"
UNSEEN = "words have tags that are not among the training labels, and count as errors"
LONG = "words are longer than a sequence and truncated"
UNKNOWN = "words tokenise to nothing and are replaced by the unknown token"


class Source(NamedTuple):
    """Where the words of a record to predict come from."""

    text: str | None
    """the text that was split into words; None: words were given"""
    spans: tuple[tuple[int, int], ...]
    """first character of each word, and one past its last"""


class Window(NamedTuple):
    """Words begin … end − 1 of a sentence, of which first … last − 1 are predicted in this window."""

    sentence: int
    begin: int
    end: int
    first: int
    last: int


class TaggedDataset:
    """Windows of sentences. A batch holds, beside the fields of every text, as int32 [batch, word]:

      word_positions  position of the first subword of each word to predict
      chains          which window of the sequence the word is in, 1, 2, …; 0: no word
      edges           1: the word begins its sentence, 2: ends it, 3: both
      tags            index of the word's tag; −1 if it is not among the labels, or there is no word

    The subwords of a predicate, or with `capitals` of words that begin with a capital letter, have type 1, others 0.
    """

    spec: BatchSpec = {
        **TEXT_SPEC,
        **{name: Field("int32", ("batch", "word")) for name in ("word_positions", "chains", "edges", "tags")},
    }

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
        counter: WarningCounter,
        sources: Sequence[Source] = (),
    ):
        """A dataset of windows.

        Args:
          sentences: what is to be tagged.
          labels: the tags, in the order of their indices.
          tokenizer: splits words into subwords.
          seq_len: length of every sequence.
          stride: as the field of `TokenTagging`, as are `packed`, `documents` and `capitals`.
          counter: what was found wrong with the data; counts what is truncated or unknown.
          sources: where sentences to predict come from.
        """
        self.examples, self.sources = sentences, sources
        self.template, self.capitals = template_of(tokenizer.vocab), capitals
        room = seq_len - self.template.count()
        subwords = subwords_of(sentences, tokenizer, room, counter)
        self.windows: list[Window] = []
        for number, sentence in enumerate(sentences):
            found = windows(number, [len(subwords[word]) for word in sentence.words], room, stride)
            if found[-1].last < len(sentence.words):
                counter.add("truncated", CUT, sentence.place(found[-1].last), len(sentence.words) - found[-1].last)
            at = sentence.predicate
            if at is not None and (blind := sum(not window.begin <= at < window.end for window in found)):
                counter.add("truncated", BLIND, sentence.place(at), blind)
            self.windows += found
        groups = self._grouped(subwords, room if documents else 0)
        sizes = np.array([self.template.count() + size for _, size in groups], np.int64)
        places = best_fit(sizes, seq_len) if packed else np.arange(len(sizes))
        self.row = np.repeat(places, [len(members) for members, _ in groups])  # of each window
        self.slot = np.zeros(len(self.row), np.int64)  # of each window's first word, among the words of its sequence
        self.padding = 1.0 - float(sizes.sum()) / max(len(self) * seq_len, 1)
        self._fill(groups, subwords, seq_len, {label: i for i, label in enumerate(labels)}, counter)
        self.warnings = counter.warnings
        if packed and len(sizes):
            text = (
                f"{len(sizes):,} segments packed into {len(self):,} sequences: {self.padding:.1%} padding instead of"
                f" {1.0 - float(sizes.mean()) / seq_len:.1%}"
            )
            self.warnings += (DataWarning("packing", len(sizes), text),)

    def __len__(self) -> int:
        return int(self.row.max(initial=-1)) + 1

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The sequences at these indices."""
        return {name: table[indices] for name, table in self.tables.items()}

    def predicted(self, tags: Int[np.ndarray, "R W"], labels: Sequence[str], other: str) -> list[list[str]]:
        """The tag of each word of each sentence, from those of all sequences; `other` for words that were truncated."""
        found = [[other] * len(sentence.words) for sentence in self.examples]
        for window, row, slot in zip(self.windows, self.row, self.slot, strict=True):
            chosen = tags[row, slot : slot + window.last - window.first]
            found[window.sentence][window.first : window.last] = [labels[tag] for tag in chosen]
        return found

    def _grouped(self, subwords: dict[str, list[int]], room: int) -> list[tuple[range, int]]:
        """(windows, their number of subwords) of each segment: neighbours in a document that fit `room` together."""
        found: list[tuple[range, int]] = []
        before = None
        for number, window in enumerate(self.windows):
            sentence, size = self.examples[window.sentence], len(self._ids(window, subwords))
            document = None if sentence.document is None else (sentence.file, sentence.document)
            if document is not None and document == before and found[-1][1] + size <= room:
                members, total = found[-1]
                found[-1] = range(members.start, number + 1), total + size
            else:
                found.append((range(number, number + 1), size))
            before = document
        return found

    def _ids(self, window: Window, subwords: dict[str, list[int]]) -> list[int]:
        words = self.examples[window.sentence].words[window.begin : window.end]
        return list(itertools.chain.from_iterable(subwords[word] for word in words))

    def _fill(
        self,
        groups: Sequence[tuple[range, int]],
        subwords: dict[str, list[int]],
        seq_len: int,
        numbers: dict[str, int],
        counter: WarningCounter,
    ) -> None:
        predicted = [window.last - window.first for window in self.windows]
        width = int(np.bincount(self.row, predicted).max(initial=1))
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
                self._fill_words(window, row, words[row], used[row] + len(ids), chains[row], subwords)
                there = slice(words[row], words[row] + window.last - window.first)
                self.tables["tags"][row, there] = tag_indices(self.examples[window.sentence], window, numbers, counter)
                words[row] = there.stop
                ids += self._ids(window, subwords)
            ids.append(self.template.end)
            segments[row] += 1
            here = slice(used[row], used[row] + len(ids))
            self.tables["input_ids"][row, here] = ids
            self.tables["segment_ids"][row, here] = segments[row]
            self.tables["positions"][row, here] = np.arange(len(ids))
            used[row] = here.stop

    def _fill_words(
        self, window: Window, row: int, slot: int, start: int, chain: int, subwords: dict[str, list[int]]
    ) -> None:
        """Fills in the words of a window: its first subword is at `start`, its first word to predict is word `slot`."""
        sentence = self.examples[window.sentence]
        if window.first == window.last:  # of an empty text
            return
        lengths = np.array([len(subwords[word]) for word in sentence.words[window.begin : window.end]])
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


def tag_indices(sentence: Sentence, window: Window, numbers: dict[str, int], counter: WarningCounter) -> list[int]:
    """Indices of the tags of the words to predict; −1, and counted, for tags that are not among the labels."""
    if not sentence.tags:
        return [-1] * (window.last - window.first)
    found = [numbers.get(tag, -1) for tag in sentence.tags[window.first : window.last]]
    if -1 in found:
        counter.add("unlabelled", UNSEEN, sentence.place(window.first + found.index(-1)), found.count(-1))
    return found


def subwords_of(
    sentences: Sequence[Sentence], tokenizer: Tokenizer, room: int, counter: WarningCounter
) -> dict[str, list[int]]:
    """Token ids of each word, at least one and at most `room`.

    Each word is encoded by itself, after a space, which is part of the word to byte-level BPE and SentencePiece, and
    ignored by WordPiece. Every word needs a token, whose hidden state predicts its tag.
    """
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence.words))
    found = dict(zip(words, tokenizer.encode([f" {word}" for word in words]), strict=True))
    vocab = tokenizer.vocab
    unknown = next(i for i in (vocab.unk, vocab.pad, vocab.eos, 0) if i is not None)
    for sentence in sentences:  # every occurrence counts
        for number, word in enumerate(sentence.words):
            if not found[word]:
                counter.add("repaired", UNKNOWN, sentence.place(number))
            if len(found[word]) > room:
                counter.add("truncated", LONG, sentence.place(number))
    return {word: ids[:room] or [unknown] for word, ids in found.items()}


def windows(sentence: int, lengths: Sequence[int], room: int, stride: int) -> list[Window]:
    """The windows of a sentence.

    Args:
      sentence: its index.
      lengths: number of subwords of each word, at least 1 and at most `room`.
      room: subwords that fit into a window.
      stride: neighbouring windows share as many words as have at most this many subwords in all, and each word is
        predicted where the shorter of its two sides of context is longest (as Devlin et al. do for answers). 0: there
        is one window, and words that do not fit into it are not predicted.
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
        # As far back as the stride reaches, as long as the next word still fits.
        shared = np.searchsorted(starts, ends[end - 1] - stride)
        fits = np.searchsorted(starts, ends[end] - room)
        begin = int(max(begin + 1, shared, fits))
    predicted_by = np.zeros(count, np.int64)
    best = np.full(count, -1)
    for number, (begin, end) in enumerate(spans):
        words = slice(begin, end)
        context = np.minimum(starts[words] - starts[begin], ends[end - 1] - ends[words])
        better = context > best[words]
        best[words] = np.where(better, context, best[words])
        predicted_by[words] = np.where(better, number, predicted_by[words])
    covered = predicted_by[: spans[-1][1]]  # sorted: context grows to the middle of a window and shrinks after it
    found = []
    for number, (begin, end) in enumerate(spans):
        first, last = (int(np.searchsorted(covered, number, side)) for side in ("left", "right"))
        if first < last:
            found.append(Window(sentence, begin, end, first, last))
    return found
