"""Near duplicates by MinHash (Broder 1997) and bands of locality-sensitive hashing (Leskovec et al., ch. 3).

A document is represented by the set of its word 5-grams. Its signature holds the minimum over the set of each of
PERMUTATIONS hash functions. Two signatures agree in an entry with the probability of the sets' Jaccard similarity.

A document is dropped if an EARLIER document, in the order of the source, shares a band with it and their signatures
agree in at least `threshold` of the entries. Earlier documents count even if they are dropped themselves. So documents
are decided independently of one another, and the result does not depend on the number of workers or the runner. In a
bucket (documents that share a band) documents are compared only with the first BUCKET ones, so the number of
comparisons is linear in the size of the bucket.

Signatures are computed in numpy for a whole block of documents. datasketch makes one SHA-1 call in Python per 5-gram,
which is slower than tokenising the text (measured in docs/how-to/prepare.md).
"""

import heapq
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

from bertgpt.io.files import remove_tree
from bertgpt.prepare.filters import hash_of

PERMUTATIONS = 128
WORDS = 5
BUCKET = 16
RECALL = 0.99

# Han, kana and hangul syllables have no spaces between words: each character counts as one.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
_PARTS = 1 << 14  # 5-grams hashed at once: 128 KB fit in the processor cache
_ONE = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """The finaliser of MurmurHash3: every bit of x affects every bit of the result."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def signatures(texts: list[str]) -> UInt32[np.ndarray, "N P"]:
    """The MinHash signatures of texts. A text of fewer than 5 words counts as a single 5-gram."""
    ids: dict[str, int] = {}
    flat: list[int] = []
    lengths = np.empty(len(texts), np.int64)
    for i, text in enumerate(texts):
        words = _WORD.findall(text.lower()) or [text]  # only punctuation: the whole text is one word
        words += [""] * (WORDS - len(words))
        flat += [ids.setdefault(word, len(ids)) for word in words]
        lengths[i] = len(words)
    hashes = np.array([hash_of(word) for word in ids], np.uint64)[np.array(flat, np.int64)] if flat else np.empty(0)
    result = np.empty((len(texts), PERMUTATIONS), np.uint32)
    # Multiply-shift hashing: h(x) = high half of (a·x + b mod 2⁶⁴) with odd a.
    factors = _mix(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * _ONE) | np.uint64(1)
    offsets = _mix(factors)
    ends = np.cumsum(lengths)
    first = 0
    while first < len(texts):
        begin = int(ends[first] - lengths[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + _PARTS, side="right")))
        words = hashes[begin : int(ends[last - 1])]
        grams = words[: len(words) - WORDS + 1].copy()
        for k in range(1, WORDS):
            grams = grams * _ONE + words[k : len(words) - WORDS + 1 + k]
        grams = _mix(grams)
        inside = np.ones(len(grams), bool)  # excludes those that span two documents
        for end in ends[first : last - 1] - begin:
            inside[end - WORDS + 1 : end] = False
        grams = grams[inside]
        counts = lengths[first:last] - WORDS + 1
        starts = np.cumsum(counts) - counts
        for p in range(PERMUTATIONS):
            values = (grams * factors[p] + offsets[p]) >> np.uint64(32)
            result[first:last, p] = np.minimum.reduceat(values, starts)
        first = last
    return result


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the most rows for which a pair at the threshold shares a band with probability RECALL."""
    for rows in range(PERMUTATIONS, 0, -1):
        bands = PERMUTATIONS // rows
        if 1.0 - (1.0 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def band_keys(signs: UInt32[np.ndarray, "N P"], threshold: float) -> UInt64[np.ndarray, "bands N"]:
    """A hash of each band of each signature. Documents share a band if these are equal."""
    bands, rows = bands_for(threshold)
    keys = np.empty((bands, len(signs)), np.uint64)
    for band in range(bands):
        key = np.full(len(signs), band, np.uint64)
        for column in signs[:, band * rows : (band + 1) * rows].T:
            key = key * _ONE + column
        keys[band] = _mix(key)
    return keys


def required_matches(threshold: float) -> int:
    """How many entries of the signatures must agree for an estimated similarity of at least `threshold`."""
    return int(np.ceil(threshold * PERMUTATIONS - 1e-9))


def near_duplicates(
    signs: UInt32[np.ndarray, "N P"],
    keys: Iterable[UInt64[np.ndarray, " N"]],
    candidates: Int[np.ndarray, " M"],
    threshold: float,
) -> Bool[np.ndarray, " N"]:
    """Which documents are near duplicates of earlier ones, among `candidates` (ascending) only.

    `keys` are the rows of `band_keys`. All arrays may be memory-mapped: bands are read one at a time, and signatures
    only of documents that share a band.
    """
    need = required_matches(threshold)
    drop = np.zeros(len(signs), bool)
    for band in keys:
        mine = np.asarray(band)[candidates]
        place = np.argsort(mine, kind="stable")
        order, mine = candidates[place], mine[place]
        at = np.arange(len(order))
        start = np.maximum.accumulate(np.where(np.concatenate([[True], mine[1:] != mine[:-1]]), at, 0))
        rank = at - start
        for nth in range(BUCKET):
            later = at[(rank > nth) & ~drop[order]]
            if not len(later):
                break
            for chunk in np.array_split(later, -(-len(later) // 100_000)):
                agree = signs[order[chunk]] == signs[order[start[chunk] + nth]]
                drop[order[chunk[agree.sum(axis=1) >= need]]] = True
    return drop


def bucket_duplicates(members: Iterable[tuple[tuple[int, ...], np.ndarray]], threshold: float) -> list[tuple[int, ...]]:
    """The same rule for one bucket of (location, signature): the locations of the documents to drop."""
    members = list(members)
    need = required_matches(threshold)
    first = heapq.nsmallest(BUCKET, members, key=lambda member: member[0])
    return [
        place
        for place, sign in members
        if any(earlier < place and int((sign == other).sum()) >= need for earlier, other in first)
    ]


class StoredSignatures:
    """The signatures of all documents and their bands, as memory-mapped files."""

    def __init__(self, folder: Path):
        """An empty folder for them; an old one is removed."""
        self.folder = folder
        remove_tree(self.folder)
        self.folder.mkdir()
        self.count = 0

    def add(self, signs: np.ndarray, threshold: float) -> None:
        """Appends the signatures of one block."""
        self.count += len(signs)
        with open(self.folder / "signatures", "ab") as file:
            file.write(signs.tobytes())
        for band, keys in enumerate(band_keys(signs, threshold)):
            with open(self.folder / f"band-{band:03d}", "ab") as file:
                file.write(keys.tobytes())

    def near_duplicates(self, candidates: Int[np.ndarray, " M"], threshold: float) -> Bool[np.ndarray, " N"]:
        """Which of the documents added so far are near duplicates, as the function of this name."""
        if not self.count:
            return np.zeros(0, bool)
        signs = np.memmap(self.folder / "signatures", np.uint32, mode="r", shape=(self.count, PERMUTATIONS))
        bands, _ = bands_for(threshold)
        keys = [np.memmap(self.folder / f"band-{band:03d}", np.uint64, mode="r") for band in range(bands)]
        return near_duplicates(signs, keys, candidates, threshold)
