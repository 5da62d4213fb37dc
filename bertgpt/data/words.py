"""Encodes many texts by their distinct words: a word is encoded once, however often it occurs.

BERT's rules (`BertNormalizer`, `BertPreTokenizer`, WordPiece) divide a text at white space and around every punctuation
mark and every Chinese character, and encode each part independently. So the ids of a text are those of its words one
after another. To look up the ids of a word takes a tenth of the time in which the library computes them.
"""

import array
import itertools
import re
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32, Int64
from tokenizers import models, normalizers, pre_tokenizers

from bertgpt.io.files import library_errors

# White space for Python; BERT's normalizer deletes it instead: "a\x85b" is one word.
_DELETED = "\v\f\x1c\x1d\x1e\x1f\x85"
_END = "\0"  # a word of its own after each sentence
_CLOSING = frozenset(".!?…。！？\"'”’»」』）)]")  # marks after which sentences begin; each is a token of its own
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")
_LONGEST = 16  # mean length of words, in characters; longer ones, such as those of Thai, do not occur again
_JOINED = 4096  # words that the library encodes as one text; several such texts at once, by its threads


def encodes_words_apart(backend: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer has BERT's rules, and no added tokens that may occur in plain text."""
    return (
        isinstance(backend.normalizer, normalizers.BertNormalizer)
        and backend.normalizer.handle_chinese_chars
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(backend.model, models.WordPiece)
        and all(token.special for token in backend.get_added_tokens_decoder().values())
    )


def is_words(text: str, starts: Sequence[int]) -> bool:
    """Whether `encode_words` encodes a text as the library does: sentences begin between words, at `starts`."""
    if _LONGEST * text.count(" ") < len(text) and _LONGEST * sum(map(len, _HAN.findall(text))) < len(text):
        return False
    if _END in text or any(character in text for character in _DELETED):
        return False
    return all((before := text[start - 1]).isspace() or before in _CLOSING for start in starts[1:])


def encode_words(
    backend: tokenizers.Tokenizer, texts: Sequence[tuple[str, Sequence[int]]]
) -> Iterator[tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " S"]]]:
    """(ids, number of tokens of each sentence) of each text.

    Args:
      backend: a tokenizer with `encodes_words_apart`.
      texts: texts with `is_words`, and where each of their sentences begins.
    """
    numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)  # of words, in order of appearance
    number_of = numbers.__getitem__
    number_of(_END)
    words = array.array("i")
    for text, starts in texts:
        words.extend(map(number_of, _split(text, starts)))
    if not words:
        return
    table, firsts, lengths = _encode_each(backend, list(numbers))
    lengths[0] = 0  # of _END
    index = np.frombuffer(words, np.int32)
    counts = lengths[index]
    ends = np.cumsum(counts)
    ids = table[np.repeat(firsts[index] - (ends - counts), counts) + np.arange(ends[-1])]
    sentence_ends = ends[index == 0]
    start = first = 0
    for _, starts in texts:
        last = first + max(len(starts), 1)
        here = sentence_ends[first:last]
        yield ids[start : here[-1]], np.diff(here, prepend=start)
        start, first = int(here[-1]), last


def _split(text: str, starts: Sequence[int]) -> list[str]:
    """The words, Chinese characters and ASCII punctuation marks of a text, and _END after each sentence.

    Words contain the other punctuation marks; the library divides there.
    """
    bounds = itertools.pairwise([0, *starts[1:], len(text)])
    text = f" {_END} ".join([text[start:end] for start, end in bounds] + [""])
    for mark in string.punctuation:
        if mark in text:
            text = text.replace(mark, f" {mark} ")
    if not text.isascii():
        text = _HAN.sub(lambda found: f" {' '.join(found[0])} ", text)
    return text.split()


def _encode_each(
    backend: tokenizers.Tokenizer, words: list[str]
) -> tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """(ids of all words one after another, where those of each word begin, how many it has)."""
    groups = [words[first : first + _JOINED] for first in range(0, len(words), _JOINED)]
    with library_errors("the tokenizer cannot encode a text"):
        found = backend.encode_batch(list(map(" ".join, groups)), add_special_tokens=False)
    lengths = []
    for group, item in zip(groups, found, strict=True):
        word_ends = np.cumsum(np.fromiter(map(len, group), np.int64, len(group)) + 1)  # with the space after each
        token_ends = np.array([end for _, end in item.offsets], np.int64)
        lengths.append(np.diff(np.searchsorted(token_ends, word_ends), prepend=0))
    counts = np.concatenate(lengths)
    ids = np.fromiter(itertools.chain.from_iterable(item.ids for item in found), np.int32, counts.sum())
    return ids, np.cumsum(counts) - counts, counts
