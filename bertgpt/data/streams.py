"""Sequences of running text: token streams for decoders and for span corruption, and whole sentences."""

from array import array

import numpy as np
from jaxtyping import Int

from bertgpt.data.packing import (
    Pieces,
    StoreDataset,
    Template,
    begins_sequence,
    cut,
    lay_out,
    overlaps,
    pad_of,
    template_of,
    token_ends,
)
from bertgpt.data.store import Store
from bertgpt.types import Batch, DataWarning, Vocab


class StreamDataset(StoreDataset):
    """Documents one after another, eos after each; sequence r is stream[r(S − 1) : r(S − 1) + S].

    Sequences overlap by one token, so that next-token prediction within sequences predicts each token of the stream
    exactly once, except the first. The last sequence is padded. A tokenizer without eos ends documents with [SEP].
    As in GPT-2 and GPT-3 (Brown et al. 2020, appendix B) a sequence is one segment, and attention crosses documents.
    With `apart`, segments and positions restart after each eos, and the first token of a document is never predicted.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int, apart: bool):
        if vocab.sep is None:
            vocab.require("a stream of documents", "eos")
        end = vocab.sep if vocab.eos is None else vocab.eos
        super().__init__(store, vocab, seq_len, Template((), end, pad_of(vocab, "a stream of documents")))
        self.apart = apart
        ends = token_ends(store)
        self.stream_ends = ends + np.arange(1, len(ends) + 1)  # each document is longer by its eos
        self.padding = 1.0 - (float(self.stream_ends[-1]) + len(self) - 1) / (len(self) * seq_len)

    def __len__(self) -> int:
        return -(-(int(self.stream_ends[-1]) - 1) // (self.seq_len - 1))

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        begin = indices * (self.seq_len - 1)
        row, document, first, last = overlaps(
            self.stream_ends, begin, np.minimum(begin + self.seq_len, self.stream_ends[-1])
        )
        closed = last == self.stream_ends[document]
        pieces = Pieces(row, first - document, last - first, np.zeros(len(row), bool), closed)
        return lay_out(self.store, self.template, self.seq_len, pieces, self.apart)


class TokenDataset(StoreDataset):
    """The tokens of all documents one after another, S in each sequence (T5: Raffel et al. 2020 §3.1.4).

    There are no special tokens; span corruption adds its own. With `keep_last` the tokens after the last full sequence
    make a padded one: evaluation needs every token, whereas training drops and counts them, because its sequences all
    have the same number of tokens.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int, keep_last: bool):
        pad = pad_of(vocab, "a sequence of tokens")
        super().__init__(store, vocab, seq_len, Template((), pad, pad))
        self.keep_last = keep_last
        kept = min(len(self) * seq_len, len(store.tokens))
        left = len(store.tokens) - kept
        if left:
            text = f"{left} of {len(store.tokens)} tokens at the end of the text do not fill a sequence: not trained on"
            self.warnings = (DataWarning("skipped", left, text),)
        self.padding = 1.0 - kept / max(len(self) * seq_len, 1)

    def __len__(self) -> int:
        full, rest = divmod(len(self.store.tokens), self.seq_len)
        return full + (self.keep_last and rest > 0)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        begin = indices * self.seq_len
        width = np.minimum(begin + self.seq_len, len(self.store.tokens)) - begin
        none = np.zeros(len(indices), bool)
        pieces = Pieces(np.arange(len(indices)), begin, width, none, none)
        return lay_out(self.store, self.template, self.seq_len, pieces, apart=False)


class SentenceDataset(StoreDataset):
    """[CLS] sentences [SEP]: as many whole sentences, in order, as fit in S tokens (Liu et al. 2019 §4.2).

    With `cross_documents` (FULL-SENTENCES) a sequence continues into the next document, [SEP] between the two; without
    (DOC-SENTENCES) it ends with the document and so may be short. The paper enlarges batches to make up for that; here
    the batch size is fixed, and `padding` reports the loss. Either way a sequence is one segment. A sentence that is
    too long for a sequence is cut. Building the index temporarily takes 24 bytes per sentence.
    """

    def __init__(self, store: Store, vocab: Vocab, seq_len: int, cross_documents: bool):
        super().__init__(store, vocab, seq_len, template_of(vocab))
        room = seq_len - self.template.count()
        ends = np.asarray(store.sentence_ends)
        start, end = cut(np.concatenate([[0], ends[:-1]]), ends, room)
        self.ends = token_ends(store)
        document = np.searchsorted(self.ends, start, side="right")
        # A sequence that begins with sentence i holds sentence j if the tokens from i to j and a [SEP] for every
        # document that ends before j fit, that is, if
        # (end of j + documents before j) − (start of i + documents before i) ≤ room.
        following = np.searchsorted(end + document, start + document + room, side="right")
        if not cross_documents:
            following = np.minimum(following, np.searchsorted(document, document, side="right"))
        begins, after, sentence = array("q"), memoryview(following), 0
        while sentence < len(start):
            begins.append(sentence)
            sentence = after[sentence]
        self.bounds = np.append(start[np.frombuffer(begins, np.int64)], ends[-1])  # of sequences, in tokens
        pieces = np.searchsorted(self.ends, self.bounds[1:] - 1, side="right") + 1
        pieces -= np.searchsorted(self.ends, self.bounds[:-1], side="right")
        filled = float(ends[-1]) + float(pieces.sum()) + len(self.template.start) * len(self)
        self.padding = 1.0 - filled / (len(self) * seq_len)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        row, _, first, last = overlaps(self.ends, self.bounds[indices], self.bounds[indices + 1])
        led = begins_sequence(row) & bool(self.template.start)
        pieces = Pieces(row, first - led, last - first + 1 + led, led, np.ones(len(row), bool))
        return lay_out(self.store, self.template, self.seq_len, pieces, apart=False)
