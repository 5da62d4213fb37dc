"""Blocks: consecutive documents of one file, which are read, cleaned, filtered, compared and tokenised together.

Which documents make up a block depends only on the data and the settings. So every process that works on a block, in
whatever order, computes the same arrays. A local process, a pool of them and Apache Beam all call `make_block`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Integer, UInt8, UInt32, UInt64

from bertgpt.data.offsets import encode_by_sentence
from bertgpt.data.sources.text import (
    Items,
    clean,
    field,
    read_documents,
    read_file,
    read_records,
    sentence_starts,
    split_of,
    text_of,
)
from bertgpt.data.store import SPLITS, Piece
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.io.files import open_atomic
from bertgpt.prepare.filters import Preparation, clean_document, hash_of, reason_to_drop
from bertgpt.prepare.near_duplicates import signatures
from bertgpt.types import JsonObject, UserError

BLOCK_CHARS = 4_000_000  # a block of long documents ends when it has this many characters


class Source(NamedTuple):
    """A document, the line where it starts, and its id if it has one."""

    text: str
    line: int
    id: str | None


class Block(NamedTuple):
    """A tokenised block: N documents that the filters kept, S sentences, T tokens; R documents were read.

    It still contains duplicates, and documents without tokens: they are removed later, over all blocks.
    """

    tokens: Integer[np.ndarray, " T"]  # uint16 or uint32
    sentence_lengths: Int32[np.ndarray, " S"]  # tokens of each sentence; none is empty
    sentence_counts: Int32[np.ndarray, " N"]  # sentences of each document
    token_counts: Int64[np.ndarray, " N"]  # tokens of each document
    hashes: UInt64[np.ndarray, " N"]
    splits: UInt8[np.ndarray, " N"]  # index into SPLITS
    signatures: UInt32[np.ndarray, "N P"]  # P = 0 if near duplicates are kept
    ids: tuple[str, ...]  # of all R documents, if they have ids
    lines: tuple[int, ...]
    dropped: dict[str, int]  # by the filters
    read: int
    chars: int  # of the R documents, as read

    def take(self, keep: Bool[np.ndarray, " N"]) -> Piece:
        """The documents to keep."""
        return Piece(
            self.tokens[np.repeat(keep, self.token_counts)],
            self.sentence_lengths[np.repeat(keep, self.sentence_counts)],
            self.sentence_counts[keep],
        )


def id_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Two bytes per token if the vocabulary fits in them, otherwise four."""
    return np.dtype(np.uint16 if tokenizer.vocab.size <= 2**16 else np.uint32)


def read_sources(file: str | Items | Callable[[], Items], settings: Preparation) -> Iterator[Source]:
    """The documents of one file of `resolve`, or of what is in memory.

    Raises:
      UserError: as `read_documents`; or a document has no `id_field`.
    """
    if settings.id_field is None:
        read = read_file if isinstance(file, str) else read_documents
        for document in read(file, settings.text_field, settings.max_line_bytes):
            yield Source(document.text, document.line, None)
    elif isinstance(file, str):
        for record in read_records(file, max_bytes=settings.max_line_bytes):
            yield Source(text_of(record, settings.text_field), record.line, field(record, settings.id_field))
    else:
        raise UserError(f"id_field={settings.id_field!r}: documents in memory have no ids")


def cut_blocks(sources: Iterable[Source], settings: Preparation) -> Iterator[list[Source]]:
    """Blocks of `block_documents` documents, or fewer if they reach BLOCK_CHARS."""
    block: list[Source] = []
    chars = 0
    for source in sources:
        block.append(source)
        chars += len(source.text)
        if len(block) >= settings.block_documents or chars >= BLOCK_CHARS:
            yield block
            block, chars = [], 0
    if block:
        yield block


class Texts(NamedTuple):
    """A block before it is tokenised."""

    documents: list[str]
    starts: list[list[int]]  # where each sentence of each document begins
    hashes: UInt64[np.ndarray, " N"]
    splits: UInt8[np.ndarray, " N"]
    signatures: UInt32[np.ndarray, "N P"]
    ids: tuple[str, ...]
    lines: tuple[int, ...]
    dropped: dict[str, int]
    read: int
    chars: int


def clean_block(sources: list[Source], settings: Preparation) -> Texts:
    """Cleans and filters documents, finds their sentences, and computes hashes and signatures for deduplication.

    Raises:
      UserError: the language filter fails.
    """
    dropped: Counter[str] = Counter()
    texts: list[str] = []
    hashes: list[int] = []
    splits: list[int] = []
    seen: set[int] = set()
    for source in sources:
        text = clean_document(source.text, settings)
        if reason := reason_to_drop(text, settings):
            dropped[reason] += 1
            continue
        compared = clean(text, strip_html=False)
        key = hash_of(compared)
        if key in seen:  # not worth tokenising
            dropped["duplicate"] += 1
            continue
        seen.add(key)
        texts.append(text)
        hashes.append(key)
        splits.append(SPLITS.index(split_of(compared, settings.validation, settings.test)))
    return Texts(
        documents=texts,
        starts=[sentence_starts(text) for text in texts],
        hashes=np.array(hashes, np.uint64),
        splits=np.array(splits, np.uint8),
        signatures=signatures(texts) if settings.near_duplicates else np.empty((len(texts), 0), np.uint32),
        ids=tuple(source.id for source in sources if source.id is not None),
        lines=tuple(source.line for source in sources) if settings.id_field is not None else (),
        dropped=dict(dropped),
        read=len(sources),
        chars=sum(len(source.text) for source in sources),
    )


def encode_block(texts: Texts, tokenizer: Tokenizer) -> Block:
    """Tokenises a block, every document as a whole."""
    found = list(encode_by_sentence(tokenizer, texts.documents, texts.starts))
    dtype = id_dtype(tokenizer)
    return Block(
        tokens=np.concatenate([np.empty(0, dtype), *(item.ids.astype(dtype) for item in found)]),
        sentence_lengths=np.concatenate([np.empty(0, np.int32), *(item.lengths for item in found)]),
        sentence_counts=np.array([len(item.lengths) for item in found], np.int32),
        token_counts=np.array([len(item.ids) for item in found], np.int64),
        **{name: value for name, value in texts._asdict().items() if name in Block._fields},
    )


def make_block(sources: list[Source], settings: Preparation, tokenizer: Tokenizer) -> Block:
    """All steps that need no other documents: `clean_block`, then `encode_block`."""
    return encode_block(clean_block(sources, settings), tokenizer)


ARRAYS = ("tokens", "sentence_lengths", "sentence_counts", "token_counts", "hashes", "splits", "signatures")


def save_block(path: Path, block: Block) -> None:
    """Writes a block atomically."""
    fields = block._asdict()
    arrays = {name: fields.pop(name) for name in ARRAYS}
    with open_atomic(path) as file:
        np.savez(file, notes=np.frombuffer(json.dumps(fields).encode(), np.uint8), **arrays)


def load_notes(path: Path) -> JsonObject:
    """The fields of a saved block without its tokens and sentences, which stay on disk."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in ("hashes", "splits", "token_counts", "signatures")}
        return arrays | json.loads(file["notes"].tobytes())


def load_piece(path: Path, keep: Bool[np.ndarray, " N"]) -> Piece:
    """The documents of a saved block to keep."""
    with np.load(path) as file:
        names = ("tokens", "sentence_lengths", "sentence_counts", "token_counts")
        tokens, lengths, sentence_counts, token_counts = (file[name] for name in names)
    return Piece(
        tokens[np.repeat(keep, token_counts)], lengths[np.repeat(keep, sentence_counts)], sentence_counts[keep]
    )


def first_of_each(hashes: UInt64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Whether no earlier element is equal."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.ones(len(hashes), bool)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first


def shards_of(
    keep: Bool[np.ndarray, " N"],
    splits: UInt8[np.ndarray, " N"],
    token_counts: Int64[np.ndarray, " N"],
    shard_tokens: int,
    before: Int[np.ndarray, " splits"] | None = None,
) -> Int64[np.ndarray, " N"]:
    """The shard of each kept document, in which its first token lies; −1 for the others.

    `before` is the number of tokens in each split before these documents. If a document is longer than a shard,
    some shard numbers stay unused.
    """
    shards = np.full(len(keep), -1, np.int64)
    for split in range(len(SPLITS)):
        mine = np.flatnonzero(keep & (splits == split))
        counts = token_counts[mine]
        starts = np.cumsum(counts) - counts + (0 if before is None else before[split])
        shards[mine] = starts // shard_tokens
    return shards
