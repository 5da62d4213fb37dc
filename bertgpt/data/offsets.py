"""Character offsets of tokens: answers and entities are substrings of the original text, sentences end at tokens."""

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int, Int32

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.data.tokenizer_spiece import QUOTES
from bertgpt.data.words import encode_words, encodes_words_apart, is_words
from bertgpt.io.files import library_errors
from bertgpt.types import UserError

CHUNK_CHARS = 1_000_000  # of texts that are encoded at once: the libraries take over 100 bytes per token


class Located(NamedTuple):
    """A text as ids, and the characters of each token."""

    ids: list[int]
    bounds: Int[np.ndarray, "N 2"]
    """text[start:end] of each token, without white space at its ends, and with the combining marks after it that no
    token has; empty for a token without a character of its own, such as all but one of the bytes of an unknown
    character"""


def locate_tokens(tokenizer: Tokenizer, texts: Sequence[str], parse_special: bool = False) -> list[Located]:
    """The same ids as `tokenizer.encode`, with their character offsets in the original text.

    Args:
      tokenizer: splits the texts.
      texts: the texts.
      parse_special: “[MASK]” in a text is the special token too.

    Raises:
      UserError: the tokenizer changes a text in a way that cannot be traced back.
    """
    if tokenizer.spiece is None:
        encoded = _encode_with_offsets(tokenizer, texts, parse_special)
        return [Located(e.ids, _trim(text, e.offsets)) for text, e in zip(texts, encoded, strict=True)]
    return [_locate_by_sentencepiece(tokenizer, text, parse_special) for text in texts]


def _encode_with_offsets(
    tokenizer: Tokenizer, texts: Sequence[str], parse_special: bool = False
) -> list[tokenizers.Encoding]:
    """What the backend makes of texts; special tokens in them are plain text unless `parse_special`."""
    with library_errors("the tokenizer cannot encode a text"):
        return tokenizer.backend_for(parse_special).encode_batch(list(texts), add_special_tokens=False)


def _trim(text: str, bounds: Sequence[tuple[int, int]]) -> Int[np.ndarray, "N 2"]:
    """The bounds without white space, which byte-level BPE and SentencePiece count as part of the token after it.

    Normalisers that strip accents drop combining marks, so the last one of a word is in no token: it belongs to the
    token before it.
    """
    trimmed = []
    for start, end in bounds:
        piece = text[start:end]
        if piece and (piece[0].isspace() or piece[-1].isspace()):
            end -= len(piece) - len(piece.rstrip())
            start = min(end, start + len(piece) - len(piece.lstrip()))
        trimmed.append((start, end))
    if not text.isascii():
        limit = len(text)  # where the next token begins
        for number in range(len(trimmed) - 1, -1, -1):
            start, end = trimmed[number]
            if start == end:
                continue
            while end < limit and extends(text[end]):
                end += 1
            trimmed[number], limit = (start, end), start
    return np.array(trimmed, np.int32).reshape(-1, 2)


def extends(character: str) -> bool:
    """Whether a character belongs to the one before it: combining marks and joiners (Unicode Standard Annex 29)."""
    return unicodedata.category(character).startswith("M") or character in "\u200c\u200d"


def _locate_by_sentencepiece(tokenizer: Tokenizer, text: str, parse_special: bool) -> Located:
    from sentencepiece import sentencepiece_pb2

    processor, fold, _ = tokenizer._sentencepiece
    ids, bounds = [], []
    for start, end, token in tokenizer._splitters[parse_special].split(text):
        if token is not None:
            ids.append(token)
            bounds.append((start, end))
            continue
        folded, offsets = _fold_traceably(text[start:end], fold)
        # The serialized message is the same in every release of the library, and its offsets are in bytes.
        encoded = sentencepiece_pb2.SentencePieceText.FromString(processor.encode(folded, out_type="serialized_proto"))
        characters = np.repeat(np.arange(len(folded)), [len(c.encode()) for c in folded]).tolist() + [len(folded)]
        ids += [piece.id for piece in encoded.pieces]
        bounds += [
            (start + offsets[characters[piece.begin]], start + offsets[characters[piece.end]])
            for piece in encoded.pieces
        ]
    return Located(ids, _trim(text, bounds))


def _fold_traceably(text: str, fold: Callable[[str], str]) -> tuple[str, list[int]]:
    """(the folded text, the offset in the text of each of its characters): folding changes the number of characters.

    Characters are folded one by one, except for quotes of two characters, which become one.
    """
    folded = fold(text)
    if folded == text:
        return text, list(range(len(text) + 1))
    cached = functools.cache(fold)
    parts, offsets = [], []
    for unit in re.finditer("|".join(map(re.escape, QUOTES)) + "|.", text, re.DOTALL):
        parts.append(cached(unit[0]))
        offsets += [unit.start()] * len(parts[-1])
    if "".join(parts) != folded:
        raise UserError(f"the tokenizer changes the text {text[:60]!r} in a way that cannot be traced back")
    return folded, [*offsets, len(text)]


class Sentences(NamedTuple):
    """A text as ids, and the number of tokens of each of its sentences."""

    ids: Int32[np.ndarray, " T"]
    lengths: Int32[np.ndarray, " S"]
    """none is 0"""


def encode_by_sentence(
    tokenizer: Tokenizer, texts: Sequence[str], starts: Sequence[Sequence[int]]
) -> Iterator[Sentences]:
    """The same ids as `tokenizer.encode`, divided into sentences.

    A token belongs to the sentence that contains its last character, and white space to the sentence before it. So the
    token " How" is the first of the sentence that begins with "How". Sentences without a token are left out.

    Args:
      tokenizer: splits the texts, each as a whole.
      texts: the texts.
      starts: where each sentence of each text begins, in characters, ascending (`sentence_starts`).
    """
    apart = tokenizer.spiece is None and encodes_words_apart(tokenizer.backend)
    by_words = [apart and is_words(text, places) for text, places in zip(texts, starts, strict=True)]
    of_words, of_others = (
        [(text, places) for text, places, by in zip(texts, starts, by_words, strict=True) if by is chosen]
        for chosen in (True, False)
    )
    words = encode_words(tokenizer.backend, of_words)
    others = _encode_in_chunks(tokenizer, [text for text, _ in of_others], [places for _, places in of_others])
    for by in by_words:
        yield _as_sentences(*next(words)) if by else next(others)


def _encode_in_chunks(
    tokenizer: Tokenizer, texts: Sequence[str], starts: Sequence[Sequence[int]]
) -> Iterator[Sentences]:
    divide = _divide_by_backend if tokenizer.spiece is None else _divide_by_sentencepiece
    first = 0
    while first < len(texts):
        chars, last = len(texts[first]), first + 1
        while last < len(texts) and chars + len(texts[last]) <= CHUNK_CHARS:
            chars, last = chars + len(texts[last]), last + 1
        yield from divide(tokenizer, texts[first:last], [list(places[1:]) for places in starts[first:last]])
        first = last


def _divide_by_backend(
    tokenizer: Tokenizer, texts: Sequence[str], joints: Sequence[Sequence[int]]
) -> Iterator[Sentences]:
    for item, places in zip(_encode_with_offsets(tokenizer, texts), joints, strict=True):
        before = _tokens_before(places, len(item), lambda token, item=item: item.token_to_chars(token)[1])
        yield _sentences(item.ids, before)


def _divide_by_sentencepiece(
    tokenizer: Tokenizer, texts: Sequence[str], joints: Sequence[Sequence[int]]
) -> Iterator[Sentences]:
    from sentencepiece import sentencepiece_pb2

    processor, fold, added = tokenizer._sentencepiece
    parts = [added.split(text) for text in texts]
    plain = [
        text[start:end] for text, of in zip(texts, parts, strict=True) for start, end, token in of if token is None
    ]
    with library_errors("the tokenizer cannot encode a text"):
        folded = [fold(part) for part in plain]
        encoded = zip(plain, folded, processor.encode(folded, out_type="serialized_proto"), strict=True)
    for places, found in zip(joints, parts, strict=True):
        ids: list[int] = []
        before: list[int] = []  # tokens before each joint
        for start, end, token in found:
            here = [place - start for place in places[len(before) : bisect.bisect_left(places, end)]]
            if token is not None:
                before += [len(ids)] * len(here)
                ids.append(token)
                continue
            part, whole, message = next(encoded)
            pieces = sentencepiece_pb2.SentencePieceText.FromString(message).pieces
            # Their offsets are in bytes of the folded text. Folding maps characters one by one, so that the pieces of
            # the text between the joints together are as long as the whole.
            between = (part[a:b] for a, b in itertools.pairwise([0, *here]))
            lengths = (len(text.encode()) for text in (between if whole == part else map(fold, between)))
            places_in_part = list(itertools.accumulate(lengths))
            local = _tokens_before(places_in_part, len(pieces), lambda i, pieces=pieces: pieces[i].end)
            before += [len(ids) + count for count in local]
            ids += [piece.id for piece in pieces]
        yield _sentences(ids, before)


def _tokens_before(joints: Sequence[int], tokens: int, end: Callable[[int], int]) -> list[int]:
    """How many of the first `tokens` tokens end at each joint or before; `end(i)` is where token i ends."""
    before: list[int] = []
    for joint in joints:
        low = before[-1] if before else 0
        step = 16  # of an exponential search: the next joint is near
        while low + step < tokens and end(low + step) <= joint:
            low, step = low + step, 2 * step
        before.append(bisect.bisect_right(range(tokens), joint, low, min(low + step, tokens), key=end))
    return before


def _sentences(ids: Sequence[int], before: Sequence[int]) -> Sentences:
    """Divides tokens where sentences begin; `before`: tokens before each joint."""
    return _as_sentences(np.array(ids, np.int32), np.diff([0, *before, len(ids)]))


def _as_sentences(ids: Int32[np.ndarray, " T"], lengths: Int[np.ndarray, " S"]) -> Sentences:
    lengths = lengths.astype(np.int32)
    return Sentences(ids, lengths[lengths > 0])
