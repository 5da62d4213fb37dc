"""Facts about a tokenizer, and statistics of how it tokenises texts."""

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
    """Name → text: kind, size, special tokens with their ids, template, sentinels and hash."""
    vocab = tokenizer.vocab
    facts = {"kind": kind_of(tokenizer), "size": f"{vocab.size:,}"}
    for role, token in tokenizer.roles.items():
        facts[role] = f"{token} {vocab.roles[role]}"
    before, after = (" ".join(tokenizer.tokens(ids)) for ids in tokenizer.template)
    facts["template"] = f"{before} … {after}".strip()
    if vocab.sentinels:
        first, last = vocab.sentinels[0], vocab.sentinels[-1]
        names = f"{tokenizer.tokens([first])[0]} {first} to {tokenizer.tokens([last])[0]} {last}"
        facts["sentinels"] = f"{len(vocab.sentinels)}: {names}"
    facts["hash"] = tokenizer.hash
    return facts


def kind_of(tokenizer: Tokenizer) -> str:
    """The kind of tokenizer in words, such as “byte-level BPE”."""
    content = json.loads(tokenizer.backend.to_str())
    kind, normalizer = content["model"]["type"], json.dumps(content["normalizer"])
    by = "byte-level " if "ByteLevel" in json.dumps(content["pre_tokenizer"]) else ""
    by = "SentencePiece " if tokenizer.spiece is not None else by
    folds = '"Lowercase"' in normalizer or '"lowercase": true' in normalizer
    return by + {"Unigram": "unigram"}.get(kind, kind) + (", lower case" if folds else "")


def readable(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Tokens in readable form: byte-level tokens as characters, if their bytes are whole characters."""
    tokens = tokenizer.tokens(ids)
    if not kind_of(tokenizer).startswith("byte-level"):
        return tokens
    special = set(tokenizer.vocab.special)
    decoder = decoders.ByteLevel()
    for k, token in enumerate(tokens):
        # A space stays “Ġ”, because it would be invisible at the edge of a table.
        text = decoder.decode([token]).replace(" ", "Ġ").replace("\n", "Ċ").replace("\t", "ĉ").replace("\r", "č")
        if ids[k] not in special and "\ufffd" not in text:
            tokens[k] = text
    return tokens


class Fit(NamedTuple):
    """Statistics of tokenised texts."""

    texts: int
    words: int
    """separated by spaces; Chinese text has few"""
    characters: int
    counts: np.ndarray
    """[V] occurrences of each id"""
    unknown: int
    """occurrences of the unknown token; always 0 in byte-level BPE"""

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def rows(self) -> dict[str, str]:
        """Name → formatted value of each statistic."""
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
        """The longest tokens that occurred, not counting word-boundary marks, and how often they did."""
        special = set(tokenizer.vocab.special)
        used = [i for i in np.flatnonzero(self.counts).tolist() if i not in special]
        tokens = list(zip(readable(tokenizer, used), used, strict=True))
        tokens.sort(key=lambda item: (-len(item[0].removeprefix("##").lstrip("▁Ġ")), item[1]))
        return [(token, int(self.counts[i])) for token, i in tokens[:limit]]


def measure(tokenizer: Tokenizer, texts: Iterable[str], name: str) -> Fit:
    """Statistics of these texts, which are called `name` in errors.

    Raises:
      UserError: they contain no words.
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
        raise UserError(f"{name}: there is no text to tokenise")
    if tokenizer.vocab.unk is not None and tokenizer.vocab.unk != tokenizer.vocab.eos:
        unknown = int(counts[tokenizer.vocab.unk])
    return Fit(number, words, characters, counts, unknown)
