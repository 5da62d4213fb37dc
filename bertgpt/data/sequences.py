"""Rows of token sequences held in memory: sources with their targets, or texts of which parts are targets."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.packing import Batch, best_fit, packing_note


class Side(NamedTuple):
    """One sequence of each example, all laid into one table of rows."""

    sequences: Sequence[Sequence[int]]
    length: int
    """places in a row; no sequence is longer"""
    pad: int
    """what fills up a row, where segment ids are 0"""


class SequenceDataset:
    """One example in each row, or if `packed` as many as fit; each is a segment with positions of its own.

    The sides are an encoder's input and a decoder's output (“target”), with the same segment numbers, or the input
    alone; then `mask` may mark which of its tokens are targets. Arrays are named as models and objectives call them:
    input_ids, segment_ids, positions, type_ids, target_mask; target_ids, target_segment_ids, target_positions.
    """

    def __init__(
        self,
        inputs: Side,
        targets: Side | None = None,
        *,
        mask: Sequence[Sequence[int]] | None = None,
        vocab_size: int,
        packed: bool = False,
        notes: tuple[str, ...] = (),
        examples: Sequence[Any] = (),
    ):
        """`examples` are what the sequences were made of, kept for those who judge."""
        sides = [inputs] if targets is None else [inputs, targets]
        lengths = [np.array([len(ids) for ids in side.sequences], np.int64) for side in sides]
        count = len(inputs.sequences)
        row = fit([side.length for side in sides], lengths) if packed else np.arange(count)
        rows = int(row.max()) + 1 if count else 0
        self.places = place(inputs.sequences, row, rows)
        self.tables = lay(inputs, self.places, rows, "")
        self.tables["type_ids"] = np.zeros_like(self.tables["input_ids"])
        if targets is not None:
            self.tables |= lay(targets, place(targets.sequences, row, rows), rows, "target_")
        if mask is not None:
            masks = inputs._replace(sequences=mask, pad=0)
            self.tables["target_mask"] = lay(masks, self.places, rows, "")["input_ids"]
        self.counted, self.vocab_size, self.examples = sides[-1].sequences, vocab_size, examples
        used, width = sum(int(n.sum()) for n in lengths), sum(side.length for side in sides)
        self.padding = 1.0 - used / max(rows * width, 1)
        self.notes = notes
        if packed:
            alone = 1.0 - used / max(count * width, 1)
            self.notes = (*notes, packing_note(count, rows, self.padding, alone))

    def __len__(self) -> int:
        return len(self.tables["input_ids"])

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        return {name: table[rows] for name, table in self.tables.items()}

    def by_example(self, values: np.ndarray) -> list[np.ndarray]:
        """Of values [rows, S] those that belong to each example's input."""
        return [values[row, start:stop] for row, start, stop, _ in self.places]

    def training_tokens(self) -> tuple[Int[np.ndarray, " N"], int]:
        """(the sequences that words are asked of, one after another, size of the vocabulary), for count models."""
        return np.concatenate([np.asarray(ids, np.int64) for ids in self.counted]), self.vocab_size


def fit(capacities: Sequence[int], lengths: Sequence[Int[np.ndarray, " N"]]) -> Int[np.ndarray, " N"]:
    """Row of each example, so that each of its sides fits.

    An example takes the larger of the shares that its sides take: if these add up to no more than 1, every side fits.
    """
    if len(capacities) == 1:
        return best_fit(lengths[0], capacities[0])
    whole = int(np.prod(capacities))
    return best_fit(np.max([n * (whole // c) for n, c in zip(lengths, capacities, strict=True)], axis=0), whole)


class Place(NamedTuple):
    """Where a sequence is."""

    row: int
    start: int
    stop: int
    segment: int


def place(sequences: Sequence[Sequence[int]], row: Int[np.ndarray, " N"], rows: int) -> list[Place]:
    """One sequence after another in its row, segments from 1."""
    start, segment = [0] * rows, [0] * rows
    places = []
    for r, sequence in zip(row.tolist(), sequences, strict=True):
        segment[r] += 1
        places.append(Place(r, start[r], start[r] + len(sequence), segment[r]))
        start[r] += len(sequence)
    return places


def lay(side: Side, places: Sequence[Place], rows: int, prefix: str) -> Batch:
    """The side's table of ids, with segment numbers and positions."""
    ids = np.full((rows, side.length), side.pad, np.int32)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    for sequence, (row, start, stop, segment) in zip(side.sequences, places, strict=True):
        ids[row, start:stop], segments[row, start:stop] = sequence, segment
        positions[row, start:stop] = np.arange(len(sequence))
    name = f"{prefix}ids" if prefix else "input_ids"
    return {name: ids, f"{prefix}segment_ids": segments, f"{prefix}positions": positions}
