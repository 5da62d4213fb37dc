"""Rows of short texts held in memory: one text or pair in each row, or several packed into one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.packing import Batch, best_fit, packing_note, template_of
from bertgpt.data.sequences import Side, lay, place
from bertgpt.data.tokenizer import Tokenizer


class EncodedTexts(NamedTuple):
    """Texts as ids with their special tokens."""

    ids: list[list[int]]
    first: Int[np.ndarray, " N"]
    """how many of them belong to the first text of a pair, its special tokens included; all where there is no second"""
    pad: int
    cut: int
    """texts that were too long"""


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], seconds: Sequence[str] | None, seq_len: int
) -> EncodedTexts:
    """[CLS] A [SEP], or of pairs [CLS] A [SEP] B [SEP], cut to `seq_len` tokens: of pairs the longer text."""
    template = template_of(tokenizer.vocab)
    between = [] if seconds is None else tokenizer.separator
    room = seq_len - template.count() - len(between)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # A word is at least one token, so words beyond the room would never be seen: spare the tokenizer.
        return tokenizer.encode([" ".join(text.split(maxsplit=room + 1)[: room + 1]) for text in texts])

    rows, first, cut = [], [], 0
    for a, b in zip(encode(texts), [[]] * len(texts) if seconds is None else encode(seconds), strict=True):
        cut += len(a) + len(b) > room
        keep_b = min(len(b), max(room - len(a), room // 2))
        keep_a = min(len(a), room - keep_b)
        rows.append([*template.start, *a[:keep_a], *between, *b[:keep_b], template.end])
        first.append(len(rows[-1]) if seconds is None else len(template.start) + keep_a + len(between))
    return EncodedTexts(rows, np.array(first, np.int32), template.pad, cut)


class TextDataset:
    """One text or pair in each row; `extra` holds more values of each row."""

    def __init__(self, encoded: EncodedTexts, seq_len: int, extra: Batch, notes: tuple[str, ...] = ()):
        self.lengths = np.array([len(row) for row in encoded.ids], np.int32)
        self.first, self.extra, self.notes = encoded.first, extra, notes
        self.table = np.full((len(encoded.ids), seq_len), encoded.pad, np.int32)
        for row, out in zip(encoded.ids, self.table, strict=True):
            out[: len(row)] = row
        self.padding = 1.0 - float(self.lengths.sum()) / max(self.table.size, 1)

    def __len__(self) -> int:
        return len(self.table)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        places = np.arange(self.table.shape[1], dtype=np.int32)
        real = places < self.lengths[rows, None]
        second = real & (places >= self.first[rows, None])
        encoded = {"input_ids": self.table[rows], "segment_ids": real.astype(np.int32), "positions": places * real}
        return encoded | {"type_ids": second.astype(np.int32)} | {k: value[rows] for k, value in self.extra.items()}

    def by_text(self, outputs: np.ndarray) -> np.ndarray:
        """What a model said of each row, as what it said of each text."""
        return outputs


class PackedTextDataset:
    """Several texts or pairs in each row, a segment each; `extra` becomes [rows, segments], −1 where there is none.

    `text` holds the number of each segment's text, so the objective sees that rows are packed.
    """

    def __init__(self, encoded: EncodedTexts, seq_len: int, extra: Batch, notes: tuple[str, ...] = ()):
        lengths = np.array([len(row) for row in encoded.ids], np.int32)
        row = best_fit(lengths, seq_len)
        count = int(row.max()) + 1 if len(row) else 0
        places = place(encoded.ids, row, count)
        self.text = np.full((count, max((p.segment for p in places), default=1)), -1, np.int32)
        for number, (r, _, _, segment) in enumerate(places):
            self.text[r, segment - 1] = number
        self.tables = lay(Side(encoded.ids, seq_len, encoded.pad), places, count, "")
        types = [np.arange(n) >= first for n, first in zip(lengths, encoded.first, strict=True)]
        self.tables["type_ids"] = lay(Side(types, seq_len, 0), places, count, "")["input_ids"]
        self.extra = {name: np.where(self.text < 0, -1, value[self.text]) for name, value in extra.items()}
        self.padding = 1.0 - float(lengths.sum()) / max(count * seq_len, 1)
        alone = 1.0 - float(lengths.sum()) / max(len(lengths) * seq_len, 1)
        self.notes = (*notes, packing_note(len(lengths), count, self.padding, alone))

    def __len__(self) -> int:
        return len(self.text)

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        tables = self.tables | self.extra | {"text": self.text}
        return {name: table[rows] for name, table in tables.items()}

    def by_text(self, outputs: np.ndarray) -> np.ndarray:
        """What a model said of each segment, in the order of the texts."""
        real = self.text >= 0
        ordered: Any = np.empty((int(real.sum()), *outputs.shape[2:]), outputs.dtype)
        ordered[self.text[real]] = outputs[real]
        return ordered
