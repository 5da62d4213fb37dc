"""Where the tokens of a text stand in it: answers and entities are handed back as pieces of the original text."""

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
    """A text as ids, and the characters that each stands for."""

    ids: list[int]
    bounds: Int[np.ndarray, "N 2"]
    """text[start:end] of each token, without white space at its ends; empty for a token that stands for no character of
    its own, such as all but one of the bytes of an unknown character"""


def locate_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Located]:
    """The same ids as `tokenizer.encode`, with their places in the text as it was given, in characters.

    Raises:
      UserError: the tokenizer changes a text in a way that cannot be traced back.
    """
    if tokenizer.spiece is None:
        tokenizer.backend.encode_special_tokens = True
        encoded = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        return [Located(e.ids, _trim(text, e.offsets)) for text, e in zip(texts, encoded, strict=True)]
    return [_locate_by_sentencepiece(tokenizer, text) for text in texts]


def _trim(text: str, bounds: Sequence[tuple[int, int]]) -> Int[np.ndarray, "N 2"]:
    """The bounds without the white space that byte-level BPE and SentencePiece count to the token after it."""
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
    folded, places = _fold_traceably(text, fold)
    # Of this message every release of the library gives the same bytes, in which places are counted in bytes too.
    encoded = sentencepiece_pb2.SentencePieceText.FromString(processor.encode(folded, out_type="serialized_proto"))
    characters = np.repeat(np.arange(len(folded)), [len(c.encode()) for c in folded]).tolist() + [len(folded)]
    bounds = [(places[characters[piece.begin]], places[characters[piece.end]]) for piece in encoded.pieces]
    return Located([piece.id for piece in encoded.pieces], _trim(text, bounds))


def _fold_traceably(text: str, fold: Callable[[str], str]) -> tuple[str, list[int]]:
    """(the folded text, for each place in it the place in the text): case and accents change the number of characters.

    Folding goes character by character, except for quotes of two, which become one.
    """
    folded = fold(text)
    if folded == text:
        return text, list(range(len(text) + 1))
    cached = functools.cache(fold)
    parts, places = [], []
    for unit in re.finditer("|".join(map(re.escape, QUOTES)) + "|.", text, re.DOTALL):
        parts.append(cached(unit[0]))
        places += [unit.start()] * len(parts[-1])
    if "".join(parts) != folded:
        raise UserError(f"the tokenizer changes the text {text[:60]!r} in a way that cannot be traced back")
    return folded, [*places, len(text)]
