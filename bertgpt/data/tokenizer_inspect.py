"""What a tokenizer is, how it takes texts apart, and how well it suits them."""

import itertools
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tokenizers import decoders

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import UserError

BATCH = 1000  # texts encoded at once


def describe(tokenizer: Tokenizer) -> dict[str, str]:
    """Kind, size, special tokens with their ids, sentinels and hash, in words, by name."""
    vocab = tokenizer.vocab
    facts = {"kind": kind_of(tokenizer), "size": f"{vocab.size:,}"}
    for role, token in tokenizer.roles.items():
        facts[role] = f"{token} {getattr(vocab, role)}"
    before, after = (" ".join(tokenizer.tokens(ids)) for ids in tokenizer.template)
    facts["template"] = f"{before} … {after}".strip()
    if vocab.sentinels:
        first, last = vocab.sentinels[0], vocab.sentinels[-1]
        names = f"{tokenizer.tokens([first])[0]} {first} to {tokenizer.tokens([last])[0]} {last}"
        facts["sentinels"] = f"{len(vocab.sentinels)}: {names}"
    facts["hash"] = tokenizer.hash
    return facts


def kind_of(tokenizer: Tokenizer) -> str:
    """In words, such as “byte-level BPE”."""
    content = json.loads(tokenizer.backend.to_str())
    kind, normalizer = content["model"]["type"], json.dumps(content["normalizer"])
    by = "byte-level " if "ByteLevel" in json.dumps(content["pre_tokenizer"]) else ""
    by = "SentencePiece " if tokenizer.spiece is not None else by
    folds = '"Lowercase"' in normalizer or '"lowercase": true' in normalizer
    return by + {"Unigram": "unigram"}.get(kind, kind) + (", lower case" if folds else "")


def readable(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The pieces as one can read them: byte-level ones as characters, as far as their bytes make up whole ones."""
    pieces = tokenizer.tokens(ids)
    if not kind_of(tokenizer).startswith("byte-level"):
        return pieces
    special = set(tokenizer.vocab.special)
    decoder = decoders.ByteLevel()
    for k, piece in enumerate(pieces):
        # A space stays “Ġ”: at the edge of a table one would not see it.
        text = decoder.decode([piece]).replace(" ", "Ġ").replace("\n", "Ċ").replace("\t", "ĉ")
        if ids[k] not in special and "\ufffd" not in text:
            pieces[k] = text
    return pieces


class Fit(NamedTuple):
    """How a tokenizer takes texts apart."""

    texts: int
    words: int
    """between spaces; a Chinese text has few of these"""
    characters: int
    counts: np.ndarray
    """(V) how often each id occurred"""
    unknown: int
    """how many of these are the unknown token; in byte-level BPE none can be"""

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def rows(self) -> dict[str, str]:
        """The figures, in words, by name."""
        return {
            "texts": f"{self.texts:,}",
            "words": f"{self.words:,}",
            "characters": f"{self.characters:,}",
            "tokens": f"{self.tokens:,}",
            "tokens per word": f"{self.tokens / self.words:.3f}",
            "characters per token": f"{self.characters / self.tokens:.3f}",
            "unknown tokens": f"{100 * self.unknown / self.tokens:.4f} %",
            "vocabulary used": f"{100 * np.count_nonzero(self.counts) / len(self.counts):.2f} %",
        }

    def longest(self, tokenizer: Tokenizer, limit: int = 10) -> list[tuple[str, int]]:
        """The pieces that occurred and are longest, not counting the mark of a word's edge, and how often they did."""
        special = set(tokenizer.vocab.special)
        used = [i for i in np.flatnonzero(self.counts).tolist() if i not in special]
        pieces = list(zip(readable(tokenizer, used), used, strict=True))
        pieces.sort(key=lambda item: (-len(item[0].removeprefix("##").lstrip("▁Ġ")), item[1]))
        return [(piece, int(self.counts[i])) for piece, i in pieces[:limit]]


def measure(tokenizer: Tokenizer, texts: Iterable[str], name: str) -> Fit:
    """Encodes the texts, which come from `name`.

    Raises:
      UserError: there is no word in them.
    """
    number = words = characters = unknown = 0
    counts = np.zeros(tokenizer.vocab.size, np.int64)
    texts = iter(texts)
    while batch := list(itertools.islice(texts, BATCH)):
        number += len(batch)
        words += sum(len(text.split()) for text in batch)
        characters += sum(map(len, batch))
        ids = itertools.chain.from_iterable(tokenizer.encode(batch))
        counts += np.bincount(np.fromiter(ids, np.int64), minlength=len(counts))
    if not counts.any() or not words:
        raise UserError(f"{name}: there is no text to take apart")
    if tokenizer.vocab.unk is not None and tokenizer.vocab.unk != tokenizer.vocab.eos:
        unknown = int(counts[tokenizer.vocab.unk])
    return Fit(number, words, characters, counts, unknown)
