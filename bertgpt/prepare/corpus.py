"""A corpus of raw text as the data of a pretraining experiment."""

import dataclasses
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int

from bertgpt.data.examples import EncodedTexts, TextDataset
from bertgpt.data.loader import Batches
from bertgpt.data.packing import ConcatDataset, PackedDataset, StoreDataset, template_of
from bertgpt.data.pairs import PairDataset
from bertgpt.data.sources.files import facts as file_facts
from bertgpt.data.sources.records import record_of, text_of
from bertgpt.data.sources.text import clean, read_documents, resolve, split_of, strip_markup
from bertgpt.data.store import VERSION, Store, find_store, open_store, read_facts
from bertgpt.data.streams import SentenceDataset, StreamDataset, TokenDataset
from bertgpt.data.tokenizer import Tokenizer, WordPiece
from bertgpt.io.paths import url_of
from bertgpt.prepare.filters import Preparation, unique_documents
from bertgpt.prepare.pipeline import prepare
from bertgpt.ranges import Fraction, Range, Rate, check_fields
from bertgpt.types import DataConfig, DataRequest, Dataset, DataWarning, Field, JsonObject, Split, UserError, Vocab

log = logging.getLogger(__name__)


# Two segments: pairs (next sentence: BERT), swapped_pairs (sentence order: ALBERT).
# Encoders, one segment: full_sentences, doc_sentences (whole sentences, across or within documents: RoBERTa), concat
#   (full sequences, cut anywhere). packed (several documents in a sequence, each on its own): every family.
# Decoders: stream (full sequences across documents: GPT-2, GPT-3), stream_documents (the same, each document on its
#   own).
# Span corruption: tokens (full sequences without special tokens: T5).
Layout = Literal[
    "pairs",
    "swapped_pairs",
    "full_sentences",
    "doc_sentences",
    "concat",
    "packed",
    "stream",
    "stream_documents",
    "tokens",
]


@dataclasses.dataclass(frozen=True)
class Corpus(DataConfig):
    """Unlabelled documents."""

    path: str
    """file, directory, glob or URL; package:module/inner/file; tfds:NAME; or the directory of a prepared store"""
    tokenizer: Any = WordPiece()
    """what to train on the train split (WordPiece, ByteBPE, SentencePiece), or the path of a tokenizer or of a run with
    one; None: init_from's"""
    seq_len: Annotated[int, Range(8)] = 128
    """tokens in a sequence, special ones included"""
    layout: Layout = "pairs"
    """how sequences are made: two segments (pairs, swapped_pairs), whole sentences (full_sentences, doc_sentences),
    full sequences with [SEP] between documents (concat), several documents in a sequence (packed), a decoder's stream
    (stream, stream_documents), or tokens without special tokens for span corruption (tokens)"""
    text_field: str = "text"
    """column of .csv, .tsv and .jsonl files that holds the text"""
    strip_html: bool = False
    """turn <br> into line breaks and remove other tags"""
    short_seq_prob: Fraction = 0.1
    """pairs, swapped_pairs: probability that a document is cut into shorter sequences"""
    duplicates: Annotated[int, Range(1, 1_000)] = 10
    """pairs, swapped_pairs: passes over the text with different pairs that make up one epoch"""
    balance_pairs: bool = False
    """pairs: leave out pairs with a random second text until half of them are next sentences; in a document of one
    sentence every pair is random"""
    validation: Rate = 0.02
    """fraction of documents held out for validation"""
    test: Rate = 0.02
    """fraction of documents held out for testing"""

    def __post_init__(self):
        check_fields(self)
        if self.validation + self.test >= 1.0:
            raise UserError(f"Corpus: validation={self.validation} and test={self.test} must leave text to train on")

    @property
    def num_types(self) -> int:
        """2 where sequences are pairs, sentence A and B."""
        return 2 if self.layout in ("pairs", "swapped_pairs") else 1

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The texts of a split as they are tokenised, each once."""
        unique = unique_documents(read_documents(self.path, self.text_field), self.strip_html, Counter())
        return (text for text in unique if split_of(clean(text, False), self.validation, self.test) == split)

    def train_tokenizer(self) -> Tokenizer:
        """Trains the tokenizer that `tokenizer` describes, on the train split."""
        start = time.perf_counter()
        tokenizer = super().train_tokenizer()
        log.info("trained a tokenizer of %s tokens in %.1f s", f"{tokenizer.vocab.size:,}", time.perf_counter() - start)
        return tokenizer

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. The first call prepares the token store under `cache`."""
        path = self.store(request.tokenizer, request.cache)
        store = open_store(path, request.split, request.tokenizer)
        dataset = self._dataset(store, request, path)
        log.info(
            "%s, %s: %s sequences, %.1f %% padding",
            request.split,
            self.layout,
            f"{len(dataset):,}",
            100 * dataset.padding,
        )
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def _dataset(self, store: Store, request: DataRequest, path: Path) -> StoreDataset:
        vocab: Vocab = request.tokenizer.vocab
        if self.layout == "concat":
            return ConcatDataset(store, vocab, self.seq_len)
        if self.layout == "packed":
            return PackedDataset(store, vocab, self.seq_len)
        if self.layout in ("stream", "stream_documents"):
            return StreamDataset(store, vocab, self.seq_len, apart=self.layout == "stream_documents")
        if self.layout == "tokens":
            return TokenDataset(store, vocab, self.seq_len, keep_last=not request.shuffle)
        if self.layout in ("full_sentences", "doc_sentences"):
            return SentenceDataset(store, vocab, self.seq_len, cross_documents=self.layout == "full_sentences")
        # Held-out text is paired once, training text anew in each of the duplicates.
        duplicates = self.duplicates if request.split == "train" else 1
        settings = (
            request.split,
            self.seq_len,
            self.short_seq_prob,
            duplicates,
            request.seed,
            read_facts(path)["digest"],
        )
        index = f"{self.layout}-{'-'.join(map(str, settings))}.npy"
        return PairDataset(
            store,
            vocab,
            self.seq_len,
            short_seq_prob=self.short_seq_prob,
            duplicates=duplicates,
            seed=request.seed,
            swapped=self.layout == "swapped_pairs",
            balance=self.balance_pairs,
            # The store may lie on a read-only disk, and nothing is kept in the local copy of one at a URL.
            cache=(path / index, request.cache / index) if url_of(path) is None else (request.cache / index,),
        )

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new texts, in order; each [MASK] in them is a position to predict.

        Raises:
          UserError: a text without [MASK] among its first seq_len − 2 tokens, or a tokenizer without [MASK].
        """
        tokenizer.vocab.require("filling masks", "mask")
        template = template_of(tokenizer.vocab)
        texts = [text_of(record_of(record, "record", number), "text") for number, record in enumerate(records, start=1)]
        room = self.seq_len - template.count()
        whole = tokenizer.encode([self._as_tokenised(text) for text in texts], parse_special=True)
        rows = [[*template.start, *ids[:room], template.end] for ids in whole]
        masked = [[i for i, token in enumerate(row) if token == tokenizer.vocab.mask] for row in rows]
        for text, found in zip(texts, masked, strict=True):
            if not found:
                raise UserError(f"no [MASK] to fill in among the first {room} tokens of {text[:60]!r}")
        most = max(map(len, masked))
        positions = np.array([found + [0] * (most - len(found)) for found in masked], np.int32)
        encoded = EncodedTexts(rows, np.array([len(row) for row in rows], np.int32), template.pad, 0)
        dataset = MaskedTexts(encoded, self.seq_len, positions, tokenizer)
        if long := sum(len(ids) > room for ids in whole):
            lost = sum(ids[room:].count(tokenizer.vocab.mask) for ids in whole)
            what = f"{long:,} of {len(texts):,} texts are truncated to {self.seq_len} tokens; {lost:,} masks are lost"
            dataset.warnings = (DataWarning("truncated", long, what),)
        return Batches(dataset, batch_size, 0, shuffle=False)

    def _as_tokenised(self, text: str) -> str:
        return strip_markup(text) if self.strip_html else text

    def describe(self, dataset: Dataset, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each text: for each [MASK], the five likeliest tokens and their probabilities."""
        assert isinstance(dataset, MaskedTexts)  # of `predict_batches`
        for positions, tokens, probabilities in zip(
            dataset.extra["mlm_positions"], outputs["tokens"], outputs["probabilities"], strict=True
        ):
            yield {
                "masks": [
                    dict(
                        zip(dataset.tokenizer.tokens(best.tolist()), np.round(p.astype(float), 4).tolist(), strict=True)
                    )
                    for position, best, p in zip(positions, tokens, probabilities, strict=True)
                    if position > 0
                ]
            }

    def digests(self, tokenizer: Tokenizer, cache: Path) -> Mapping[str, str]:
        """That of the prepared store."""
        return {self.path: read_facts(self.store(tokenizer, cache))["digest"]}

    def store(self, tokenizer: Tokenizer, cache: Path) -> Path:
        """The directory of the prepared store: `path` itself if it is one, else one under `cache`, made if missing."""
        if (found := find_store(self.path)) is not None:
            return found
        files = [(file, *file_facts(file).values()) for file in resolve(self.path)]
        settings = (VERSION, files, tokenizer.hash, self.text_field, self.strip_html, self.validation, self.test)
        path = cache / f"store-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
        if not path.exists():
            start = time.perf_counter()
            preparation = Preparation(
                text_field=self.text_field,
                strip_html=self.strip_html,
                validation=self.validation,
                test=self.test,
            )
            facts = prepare(self.path, tokenizer, path, preparation, wait=True)
            counts = {split: (part["documents"], part["tokens"]) for split, part in facts["splits"].items()}
            log.info(
                "prepared %s in %.1f s: (documents, tokens) %s, dropped %s",
                path,
                time.perf_counter() - start,
                counts,
                facts["dropped"],
            )
        return path


class MaskedTexts(TextDataset):
    """Texts with masks to fill in."""

    def __init__(self, encoded: EncodedTexts, seq_len: int, positions: Int[np.ndarray, "N M"], tokenizer: Tokenizer):
        fields = {"mlm_positions": Field("int32", ("batch", "masked"))}
        super().__init__(encoded, seq_len, {"mlm_positions": positions}, fields)
        self.tokenizer = tokenizer
