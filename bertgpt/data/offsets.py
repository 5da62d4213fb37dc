"""Character offsets of tokens, so that answers and entities are returned as substrings of the original text."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.data.tokenizer_files import QUOTES
from bertgpt.types import UserError


class Located(NamedTuple):
    """A text as ids, and the characters of each token."""

    ids: list[int]
    bounds: Int[np.ndarray, "N 2"]
    """text[start:end] of each token, without white space at its ends; empty for a token without a character of its own,
    such as all but one of the bytes of an unknown character"""


def locate_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Located]:
    """The same ids as `tokenizer.encode`, with their character offsets in the original text.

    Raises:
      UserError: the tokenizer changes a text in a way that cannot be traced back.
    """
    if tokenizer.spiece is None:
        tokenizer.backend.encode_special_tokens = True
        encoded = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        return [Located(e.ids, _trim(text, e.offsets)) for text, e in zip(texts, encoded, strict=True)]
    return [_locate_by_sentencepiece(tokenizer, text) for text in texts]


def _trim(text: str, bounds: Sequence[tuple[int, int]]) -> Int[np.ndarray, "N 2"]:
    """The bounds without white space, which byte-level BPE and SentencePiece count as part of the token after it."""
    trimmed = []
    for start, end in bounds:
        piece = text[start:end]
        if piece and (piece[0].isspace() or piece[-1].isspace()):
            end -= len(piece) - len(piece.rstrip())
            start = min(end, start + len(piece) - len(piece.lstrip()))
        trimmed.append((start, end))
    return np.array(trimmed, np.int32).reshape(-1, 2)


def _locate_by_sentencepiece(tokenizer: Tokenizer, text: str) -> Located:
    from sentencepiece import sentencepiece_pb2

    processor, fold, _ = tokenizer._sentencepiece
    folded, offsets = _fold_traceably(text, fold)
    # The serialized message is the same in every release of the library, and its offsets are in bytes.
    encoded = sentencepiece_pb2.SentencePieceText.FromString(processor.encode(folded, out_type="serialized_proto"))
    characters = np.repeat(np.arange(len(folded)), [len(c.encode()) for c in folded]).tolist() + [len(folded)]
    bounds = [(offsets[characters[piece.begin]], offsets[characters[piece.end]]) for piece in encoded.pieces]
    return Located([piece.id for piece in encoded.pieces], _trim(text, bounds))


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
