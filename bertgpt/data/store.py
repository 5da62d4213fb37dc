"""The token store: a corpus in shards of flat integer files, by split, for memory mapping.

STORE/store.json                         version, tokenizer hash, settings, counts and hashes of each shard, digest
STORE/<split>/<shard>/tokens.bin         ids of all documents one after another, uint16 or uint32, no special tokens:
                                         of each document those of `tokenizer.encode`
STORE/<split>/<shard>/sentence_ends.npy  int64, the end of each sentence, in tokens of the shard
STORE/<split>/<shard>/document_ends.npy  int64, the end of each document, in sentences of the shard
STORE/report.json, report.md             report of the preparation (bertgpt.prepare.pipeline); not in the digest

Shards are named by their number, from 00000. The digest is the SHA-256 over the hashes of all files of all shards:
stores with equal digests hold the same tokens in the same order.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

import numpy as np
from jaxtyping import Int, Int32, Integer, Shaped

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.io.checksums import find_damage
from bertgpt.io.files import read_json_object
from bertgpt.io.paths import SCHEMES, local_path, url_of
from bertgpt.io.remote import RemoteDirectory
from bertgpt.runs.mirror import fetch, open_copy
from bertgpt.types import JsonObject, Split, UserError

VERSION = 3  # 2: sentences were tokenised one by one, so that the white space between them was lost
SPLITS: tuple[Split, ...] = get_args(Split)
CHECK_BELOW = 1 << 30  # bytes: smaller splits are hashed whenever they are opened, larger ones only by `check_store`
HISTOGRAM = 32  # bins of document lengths in tokens: bin k counts 2^k ≤ length < 2^(k+1)


class Sharded:
    """A read-only array that concatenates shards without copying them.

    Supports len, dtype, integers, slices, integer and boolean arrays of any shape, np.asarray. A slice within one shard
    is a view of it.
    """

    def __init__(self, parts: Sequence[np.ndarray], offsets: Sequence[int] | None = None):
        """`offsets` is added to the elements of each part."""
        self.parts = list(parts)
        self.offsets = np.zeros(len(parts), np.int64) if offsets is None else np.asarray(offsets, np.int64)
        self.shifted = bool(self.offsets.any())
        self.ends = np.cumsum([len(part) for part in parts])
        self.starts = self.ends - [len(part) for part in parts]
        self.dtype = self.parts[0].dtype
        self.ndim = 1

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    @property
    def size(self) -> int:
        return len(self)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("shards cannot become one array without a copy")
        whole = np.concatenate([self._part(i, slice(None)) for i in range(len(self.parts))])
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _part(self, part: int, index: object) -> np.ndarray:
        values = self.parts[part][index]
        return values + self.dtype.type(self.offsets[part]) if self.shifted else values

    def __getitem__(self, index: object) -> np.ndarray | np.generic:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self._gather(np.arange(start, stop, step))
            found = []
            while start < stop:
                part = int(np.searchsorted(self.ends, start, side="right"))
                end = min(stop, int(self.ends[part]))
                found.append(self._part(part, slice(start - self.starts[part], end - self.starts[part])))
                start = end
            return found[0] if len(found) == 1 else np.concatenate([np.empty(0, self.dtype), *found])
        index = np.asarray(index)
        if index.dtype == bool:
            if index.shape != self.shape:
                raise IndexError(f"boolean index of shape {index.shape} for {len(self)} elements")
            index = np.flatnonzero(index)
        elif not index.size:
            return np.empty(index.shape, self.dtype)
        elif index.dtype.kind not in "iu":
            raise IndexError(f"an index must be integers, booleans or a slice, not {index.dtype}")
        return self._gather(index)

    def _gather(self, index: Integer[np.ndarray, "..."]) -> np.ndarray | np.generic:
        rows = index.astype(np.int64).reshape(-1, index.shape[-1] if index.ndim > 1 else 1)
        if rows.size and rows.min() < 0:
            rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"index out of bounds for {len(self)} elements")
        values = np.empty(rows.shape, self.dtype)
        # Most rows of a batch lie within one shard. Comparing only their ends is ten times faster than every element.
        first, last = (np.searchsorted(self.ends, end, side="right") for end in (rows.min(axis=1), rows.max(axis=1)))
        whole = first == last
        self._fill(values, rows, np.where(whole, first, -1))
        if not whole.all():
            across = rows[~whole].reshape(-1, 1)
            parts = np.empty(across.shape, self.dtype)
            self._fill(parts, across, np.searchsorted(self.ends, across[:, 0], side="right"))
            values[~whole] = parts.reshape(-1, rows.shape[1])
        return values[0, 0] if index.ndim == 0 else values.reshape(index.shape)

    def _fill(
        self, values: Shaped[np.ndarray, "R C"], rows: Int[np.ndarray, "R C"], part: Int[np.ndarray, " R"]
    ) -> None:
        """Copies the rows that lie in one part each; −1: skip the row."""
        for i in np.unique(part).tolist():
            if i >= 0:
                mine = part == i
                values[mine] = self._part(i, rows[mine] - self.starts[i])


class Store(NamedTuple):
    """One split, memory-mapped: arrays if it has one shard, `Sharded` if several."""

    tokens: np.ndarray | Sharded
    sentence_ends: np.ndarray | Sharded
    document_ends: np.ndarray | Sharded

    def document_starts(self) -> Int[np.ndarray, " documents"]:
        """Start of each document, in tokens, by one gather; 8 bytes per document."""
        ends = np.asarray(self.document_ends)
        starts = np.zeros(len(ends), np.int64)
        starts[1:] = self.sentence_ends[ends[:-1] - 1]
        return starts

    def document(self, number: int) -> Integer[np.ndarray, " tokens"]:
        """The tokens of one document, without reading others."""
        number = range(len(self.document_ends))[number]
        last = int(self.document_ends[number]) - 1
        first = int(self.document_ends[number - 1]) - 1 if number else -1
        start = int(self.sentence_ends[first]) if number else 0
        return self.tokens[start : int(self.sentence_ends[last])]


class Piece(NamedTuple):
    """Documents to be written to a shard."""

    tokens: Integer[np.ndarray, " T"]
    sentence_lengths: Int32[np.ndarray, " S"]
    sentence_counts: Int32[np.ndarray, " N"]


class _Hashing:
    """A file to write that hashes its content."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        self.hash.update(data)
        self.bytes += len(data)
        self.file.write(data)
        return len(data)


def write_shard(
    create: Callable[[str], AbstractContextManager[BinaryIO]], pieces: Iterable[Piece], dtype: np.dtype
) -> JsonObject:
    """Writes the three files of a shard and returns its counts and hashes, its entry in store.json.

    Tokens are written piece by piece; only the ends of sentences and documents are held in memory.

    Args:
      create: opens a file of the shard, by its name, for writing.
      pieces: the documents, in order; at least one.
      dtype: type of the token ids.
    """
    files = {}
    lengths, counts = [], []
    largest, total = 0, 0
    histogram = np.zeros(HISTOGRAM, np.int64)
    with create("tokens.bin") as file:
        out = _Hashing(file)
        for piece in pieces:
            if not len(piece.tokens):
                continue
            out.write(np.ascontiguousarray(piece.tokens, dtype))
            largest, total = max(largest, int(piece.tokens.max())), total + len(piece.tokens)
            lengths.append(piece.sentence_lengths)
            counts.append(piece.sentence_counts)
            first = np.cumsum(piece.sentence_counts) - piece.sentence_counts
            bins = np.log2(np.add.reduceat(piece.sentence_lengths, first, dtype=np.int64)).astype(int)
            histogram += np.bincount(bins, minlength=HISTOGRAM)
        files["tokens.bin"] = {"bytes": out.bytes, "sha256": out.hash.hexdigest()}
    ends = {"sentence_ends": np.cumsum(np.concatenate(lengths), dtype=np.int64)}
    ends["document_ends"] = np.cumsum(np.concatenate(counts), dtype=np.int64)
    for name, values in ends.items():
        content = io.BytesIO()
        np.save(content, values)
        with create(f"{name}.npy") as file:
            out = _Hashing(file)
            out.write(content.getbuffer())
        files[f"{name}.npy"] = {"bytes": out.bytes, "sha256": out.hash.hexdigest()}
    return {
        "documents": len(ends["document_ends"]),
        "sentences": len(ends["sentence_ends"]),
        "tokens": total,
        "largest_id": largest,
        "lengths": histogram.tolist(),
        "files": files,
    }


def shard_name(number: int) -> str:
    return f"{number:05d}"


def store_facts(
    shards: dict[tuple[Split, int], JsonObject], tokenizer: Tokenizer, dtype: np.dtype, more: JsonObject
) -> JsonObject:
    """The content of store.json, from the entries of its shards."""
    splits = {}
    for split in SPLITS:
        numbers = sorted(number for name, number in shards if name == split)
        parts = [{"name": shard_name(number)} | shards[split, number] for number in numbers]
        totals = {unit: sum(part[unit] for part in parts) for unit in ("documents", "sentences", "tokens")}
        splits[split] = totals | {"shards": parts}
    facts = {
        "version": VERSION,
        "digest": digest(splits),
        "tokenizer": tokenizer.hash,
        "vocab_size": tokenizer.vocab.size,
        "dtype": dtype.name,
    }
    return facts | more | {"splits": splits}


def digest(splits: JsonObject) -> str:
    """SHA-256 over the hashes of all shards' files."""
    whole = hashlib.sha256()
    for split in SPLITS:
        for shard in splits[split]["shards"]:
            for name, check in sorted(shard["files"].items()):
                whole.update(f"{split}/{shard['name']}/{name} {check['sha256']}\n".encode())
    return whole.hexdigest()


def read_facts(path: Path, update: bool = True) -> JsonObject:
    """The content of a store's store.json, of one at a URL that of its local copy, after an `update` from the URL.

    Raises:
      UserError: it cannot be read, or is of another version.
    """
    path = open_copy(path, later=_is_shard) if update else path
    try:
        facts = read_json_object(path / "store.json")
    except UserError as error:
        raise UserError(f"store {path}: cannot be read: {error}") from None
    if (version := facts.get("version")) != VERSION:
        raise UserError(f"store {path}: has version {version}, this program reads {VERSION}; prepare it again")
    return facts


def fetch_split(path: Path, split: Split, facts: JsonObject) -> bool:
    """Downloads what the local copy of a store lacks of a split. Returns whether that was anything."""
    shards = facts["splits"][split]["shards"]
    return fetch(path, [f"{split}/{shard['name']}/{name}" for shard in shards for name in shard["files"]])


def _is_shard(name: str) -> bool:
    return name.count("/") == 2


def check_split(path: Path, split: Split, facts: JsonObject, contents: bool) -> None:
    """Compares the files of a split with store.json: their sizes, and with `contents` every byte.

    Raises:
      UserError: a file is missing, of another size, or corrupt.
    """
    for shard in facts["splits"][split]["shards"]:
        expected = {f"{split}/{shard['name']}/{name}": check for name, check in shard["files"].items()}
        if damage := find_damage(path, expected, contents):
            raise UserError(f"store {path}: {damage}")


def find_store(path: str | Path) -> Path | None:
    """The directory of the store at a path or URL, None if there is none; of a URL it is the local copy."""
    if url_of(path) is None:
        return Path(path) if (Path(path) / "store.json").exists() else None
    if url_of(path).partition(":")[0] not in SCHEMES or RemoteDirectory(path).read("store.json") is None:
        return None
    return local_path(path)


def check_store(path: Path) -> JsonObject:
    """Reads every byte of a store and returns its facts.

    Raises:
      UserError: anything differs from store.json, or store.json from its own digest.
    """
    facts, path = read_facts(path), local_path(path)
    try:
        for split in SPLITS:
            fetch_split(path, split, facts)
            check_split(path, split, facts, contents=True)
        if digest(facts["splits"]) != facts["digest"]:
            raise UserError(f"store {path}: store.json does not match its own digest")
    except (OSError, KeyError, TypeError) as error:
        raise UserError(f"store {path}: cannot be read: {type(error).__name__} {error}") from None
    return facts


def open_store(path: Path, split: Split, tokenizer: Tokenizer) -> Store:
    """Maps one split of a store. Of a store at a URL the split is downloaded once, and then mapped from its local copy.

    Sizes are always checked, contents only if the split has less than CHECK_BELOW bytes; `bertgpt prepare --check`
    checks the contents of any store. What was downloaded is checked once.

    Raises:
      UserError: the store is damaged, of another version or tokenizer, holds an id outside the vocabulary, or the split
        is empty.
    """
    facts, path = read_facts(path), local_path(path)
    try:
        if facts["tokenizer"] != tokenizer.hash:
            raise UserError(
                f"store {path}: was prepared with tokenizer {facts['tokenizer']}, but this one is {tokenizer.hash}"
            )
        shards = facts["splits"][split]["shards"]
        size = sum(check["bytes"] for shard in shards for check in shard["files"].values())
        new = fetch_split(path, split, facts)
        check_split(path, split, facts, contents=new or size < CHECK_BELOW)
        if not shards:
            raise UserError(f"store {path}: split {split!r} has no documents; raise data.{split} or provide more text")
        largest = max(shard["largest_id"] for shard in shards)
        if largest >= tokenizer.vocab.size:
            raise UserError(
                f"store {path}: token id {largest} in {split!r} is not below vocabulary size {tokenizer.vocab.size}"
            )
        folders = [path / split / shard["name"] for shard in shards]
        tokens = [np.memmap(folder / "tokens.bin", np.dtype(facts["dtype"]), mode="r") for folder in folders]
        sentence_ends = [np.load(folder / "sentence_ends.npy", mmap_mode="r") for folder in folders]
        document_ends = [np.load(folder / "document_ends.npy", mmap_mode="r") for folder in folders]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"store {path}: cannot be read: {type(error).__name__} {error}") from None
    if len(shards) == 1:
        return Store(tokens[0], sentence_ends[0], document_ends[0])
    tokens_before, sentences_before = (
        np.cumsum([0, *map(len, parts[:-1])]).tolist() for parts in (tokens, sentence_ends)
    )
    return Store(Sharded(tokens), Sharded(sentence_ends, tokens_before), Sharded(document_ends, sentences_before))
