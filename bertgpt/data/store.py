"""The prepared token store: a corpus as flat integer files, split, without duplicates, ready for memory mapping.

STORE/store.json                 version, tokenizer hash, counts, sizes, checksums
STORE/<split>/tokens.bin         ids of all documents one after another, uint16 or uint32, no special tokens
STORE/<split>/sentence_ends.npy  int64, where each sentence ends in tokens
STORE/<split>/document_ends.npy  int64, where each document ends in sentences
"""

import hashlib
import itertools
import json
import os
import shutil
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from bertgpt.config import UserError
from bertgpt.data.files import facts as file_facts
from bertgpt.data.text import Document, Split, clean, read_documents, resolve, sentences, split_of
from bertgpt.data.tokenizer import Tokenizer

VERSION = 1
SPLITS: tuple[Split, ...] = get_args(Split)
CHUNK = 1000  # documents handed to the tokenizer at once


class Store(NamedTuple):
    """One split, memory-mapped."""

    tokens: np.ndarray
    sentence_ends: np.ndarray
    document_ends: np.ndarray


def unique_documents(documents: Iterator[Document], strip_html: bool, dropped: Counter) -> Iterator[str]:
    """Cleaned texts, each once; counts what it leaves out."""
    seen = set()
    for document in documents:
        text = clean(document.text, strip_html)
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if not text:
            dropped["empty"] += 1
        elif digest in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(digest)
            yield text


class _SplitWriter:
    """Appends documents to one split's files."""

    def __init__(self, directory: Path, dtype: np.dtype):
        directory.mkdir()
        self.directory, self.dtype = directory, dtype
        self.file = open(directory / "tokens.bin", "wb")
        self.tokens = 0
        self.sentence_ends, self.document_ends = array("q"), array("q")

    def add(self, document: list[list[int]]) -> bool:
        ids = [sentence for sentence in document if sentence]
        if not ids:
            return False
        for sentence in ids:
            self.tokens += len(sentence)
            self.sentence_ends.append(self.tokens)
        self.file.write(np.fromiter(itertools.chain.from_iterable(ids), self.dtype).tobytes())
        self.document_ends.append(len(self.sentence_ends))
        return True

    def close(self) -> dict:
        self.file.close()
        np.save(self.directory / "sentence_ends.npy", np.frombuffer(self.sentence_ends, np.int64))
        np.save(self.directory / "document_ends.npy", np.frombuffer(self.document_ends, np.int64))
        checks = {f.name: {"bytes": f.stat().st_size, "crc32": _crc(f)} for f in sorted(self.directory.iterdir())}
        counts = {"documents": len(self.document_ends), "sentences": len(self.sentence_ends), "tokens": self.tokens}
        return counts | {"files": checks}


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def prepare(
    source: str, tokenizer: Tokenizer, path: Path, *, text_field: str, strip_html: bool, validation: float, test: float
) -> dict:
    """Tokenises the documents of `source` into a store at `path` and returns the content of its store.json.

    The store is written beside `path` and renamed into place, so that a killed run leaves nothing there; what it left
    beside is removed by the next one.

    Raises:
      UserError: `path` exists, or a source file is bad.
    """
    if path.exists():
        raise UserError(f"{path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        if not _alive(int(left.name.split(".")[-2])):
            shutil.rmtree(left, ignore_errors=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        dropped: Counter = Counter({"duplicate": 0, "empty": 0})
        dtype = np.dtype(np.uint16 if tokenizer.vocab.size <= 2**16 else np.uint32)
        writers = {split: _SplitWriter(partial / split, dtype) for split in SPLITS}
        texts = unique_documents(read_documents(source, text_field), strip_html, dropped)
        while chunk := list(itertools.islice(texts, CHUNK)):
            parts = [sentences(text) for text in chunk]
            ids = iter(tokenizer.encode([sentence for part in parts for sentence in part]))
            for text, part in zip(chunk, parts, strict=True):
                encoded = list(itertools.islice(ids, len(part)))
                dropped["empty"] += not writers[split_of(text, validation, test)].add(encoded)
        facts = {
            "version": VERSION,
            "tokenizer": tokenizer.hash,
            "vocab_size": tokenizer.vocab.size,
            "dtype": dtype.name,
            "source": [
                {"file": os.path.basename(file), "bytes": file_facts(file)["bytes"]} for file in resolve(source)
            ],
            "dropped": dict(dropped),
            "splits": {split: writer.close() for split, writer in writers.items()},
        }
        (partial / "store.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(partial, path)
        except OSError:
            if not path.exists():  # else: another process was first, and its store is the same
                raise
        return facts
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def open_store(path: Path, split: Split, tokenizer: Tokenizer) -> Store:
    """Maps one split of a store.

    Raises:
      UserError: the store is damaged, of another version or tokenizer, holds an id outside the vocabulary, or the split
        is empty.
    """
    try:
        facts = json.loads((path / "store.json").read_text(encoding="utf-8"))
        if facts["version"] != VERSION:
            raise UserError(
                f"store {path}: has version {facts['version']}, this program reads {VERSION}; prepare it again"
            )
        if facts["tokenizer"] != tokenizer.hash:
            raise UserError(
                f"store {path}: was prepared with tokenizer {facts['tokenizer']}, but this one is {tokenizer.hash}"
            )
        counts = facts["splits"][split]
        for name, check in counts["files"].items():
            file = path / split / name
            if not file.is_file():
                raise UserError(f"store {path}: {split}/{name} is missing")
            if file.stat().st_size != check["bytes"]:
                raise UserError(f"store {path}: {split}/{name} has {file.stat().st_size} bytes, not {check['bytes']}")
            if _crc(file) != check["crc32"]:
                raise UserError(f"store {path}: {split}/{name} is corrupt (checksum differs)")
        if not counts["documents"]:
            raise UserError(f"store {path}: split {split!r} has no documents; raise data.{split} or give more text")
        tokens = np.memmap(path / split / "tokens.bin", np.dtype(facts["dtype"]), mode="r")
        ends = [np.load(path / split / f"{name}_ends.npy", mmap_mode="r") for name in ("sentence", "document")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"store {path}: cannot be read: {type(error).__name__} {error}") from None
    largest = int(tokens.max())
    if largest >= tokenizer.vocab.size:
        raise UserError(
            f"store {path}: token id {largest} in {split!r} is not below vocabulary size {tokenizer.vocab.size}"
        )
    return Store(tokens, *ends)
