"""Datasets of labelled or paired texts held in memory: one example in each sequence, or several packed into one.

`TextDataset` and `PackedTextDataset` hold single texts or pairs of texts for encoders. `SequenceDataset` holds token
sequences with targets: sources and targets for encoder–decoders, or texts of which some tokens are targets.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bertgpt.data.images.reading import ImageReference
from bertgpt.data.packing import best_fit, template_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import MASK_SPEC, TARGET_SPEC, TEXT_SPEC, Batch, BatchSpec, DataWarning, Field

CHUNK = 1024  # texts tokenised at once


class Example(NamedTuple):
    """A text or a pair of texts, and what it is labelled with."""

    texts: tuple[str, ...]
    """one text, or the two texts of a pair"""
    label: int | float | tuple[int, ...] | None = None
    """index of the label; several indices in order, as a tuple; or a number. None: not known"""
    images: tuple[ImageReference, ...] = ()
    """the image beside the text, or the frames of a video"""
    group: str = ""
    """the kind of the example, such as the type of a question"""


class EncodedTexts(NamedTuple):
    """Texts as token ids, special tokens included."""

    ids: list[list[int]]
    first: Int[np.ndarray, " N"]
    """how many tokens belong to the first text of a pair, special tokens included; all where there is no second text"""
    pad: int
    truncated: int
    """number of texts that were too long"""


def encode_texts(tokenizer: Tokenizer, examples: Sequence[Sequence[str]], seq_len: int) -> EncodedTexts:
    """Encodes texts as [CLS] A [SEP], and pairs as [CLS] A [SEP] B [SEP].

    The tokenizer reads each text as it is, with all its white space.

    Args:
      tokenizer: splits the texts and says which special tokens surround them.
      examples: one or two texts each, the same number in all.
      seq_len: longest sequence. Of a longer text the end is dropped; of a longer pair the end of the longer text.
    """
    pairs = bool(examples) and len(examples[0]) > 1
    template = template_of(tokenizer.vocab)
    separator = tokenizer.separator if pairs else []
    room = seq_len - template.count() - len(separator)

    def encode(texts: Sequence[str]) -> list[tuple[list[int], int]]:
        # (the tokens that may fit, the number of all), in chunks so that the other tokens are soon forgotten.
        chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
        return [(ids[:room], len(ids)) for chunk in chunks for ids in tokenizer.encode(chunk)]

    firsts = encode([texts[0] for texts in examples])
    seconds = encode([texts[1] for texts in examples]) if pairs else [([], 0)] * len(firsts)
    sequences, first, truncated = [], [], 0
    for (a, length_a), (b, length_b) in zip(firsts, seconds, strict=True):
        truncated += length_a + length_b > room
        keep_a, keep_b = lengths_that_fit(length_a, length_b, room)
        sequences.append([*template.start, *a[:keep_a], *separator, *b[:keep_b], template.end])
        first.append(len(template.start) + keep_a + len(separator) if pairs else len(sequences[-1]))
    return EncodedTexts(sequences, np.array(first, np.int32), template.pad, truncated)


def lengths_that_fit(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept, as the tokenizers library truncates ("longest_first").

    The shorter text keeps at most half of the room, rounded down, and the longer one gets the rest. BERT's own script
    differs by one token where both are long and the room is odd.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


class TextDataset:
    """One text or pair in each sequence."""

    def __init__(
        self,
        encoded: EncodedTexts,
        seq_len: int,
        extra: Batch,
        fields: BatchSpec,
        warnings: tuple[DataWarning, ...] = (),
        examples: Sequence[Example] = (),
    ):
        """A dataset of encoded texts.

        Args:
          encoded: the texts.
          seq_len: length of every sequence.
          extra: more arrays, whose first axis is that of the texts.
          fields: what these arrays are like.
          warnings: what was truncated or skipped.
          examples: what the texts were encoded from, for baselines.
        """
        self.lengths = np.array([len(ids) for ids in encoded.ids], np.int32)
        self.first, self.extra, self.warnings, self.examples = encoded.first, extra, warnings, examples
        self.spec: BatchSpec = {**TEXT_SPEC, **fields}
        self.table = np.full((len(encoded.ids), seq_len), encoded.pad, np.int32)
        for ids, sequence in zip(encoded.ids, self.table, strict=True):
            sequence[: len(ids)] = ids
        self.padding = 1.0 - float(self.lengths.sum()) / max(self.table.size, 1)

    def __len__(self) -> int:
        return len(self.table)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The examples at these indices."""
        positions = np.arange(self.table.shape[1], dtype=np.int32)
        real = positions < self.lengths[indices, None]
        second = real & (positions >= self.first[indices, None])
        texts = {
            "input_ids": self.table[indices],
            "segment_ids": real.astype(np.int32),
            "positions": positions * real,
            "type_ids": second.astype(np.int32),
        }
        return texts | {name: values[indices] for name, values in self.extra.items()}

    def by_text(self, outputs: np.ndarray) -> np.ndarray:
        """The outputs for each text, from those for each sequence."""
        return outputs


class PackedTextDataset:
    """Several texts or pairs in each sequence, each a segment of its own.

    The field `text`, int32 [batch, segment], holds the index of the text in each segment, −1 where there is none. Its
    presence in the spec declares that sequences are packed and that `label` has one value for each segment.
    """

    def __init__(
        self,
        encoded: EncodedTexts,
        seq_len: int,
        extra: Batch,
        fields: BatchSpec,
        warnings: tuple[DataWarning, ...] = (),
        examples: Sequence[Example] = (),
    ):
        """As `TextDataset`; the extra arrays hold one value for each text, and −1 for segments without a text."""
        lengths = np.array([len(ids) for ids in encoded.ids], np.int32)
        index = best_fit(lengths, seq_len)
        count = int(index.max()) + 1 if len(index) else 0
        places = place(encoded.ids, index, count)
        self.text = np.full((count, max((p.segment for p in places), default=1)), -1, np.int32)
        for number, (sequence, _, _, segment) in enumerate(places):
            self.text[sequence, segment - 1] = number
        self.tables = fill_tables(Side(encoded.ids, seq_len, encoded.pad), places, count, INPUT_FIELDS)
        types = [np.arange(n) >= first for n, first in zip(lengths, encoded.first, strict=True)]
        self.tables["type_ids"] = fill_tables(Side(types, seq_len, 0), places, count, INPUT_FIELDS)["input_ids"]
        self.extra = {name: np.where(self.text < 0, -1, values[self.text]) for name, values in extra.items()}
        self.spec: BatchSpec = {
            **TEXT_SPEC,
            **{name: Field(field.dtype, ("batch", "segment")) for name, field in fields.items()},
            "text": Field("int32", ("batch", "segment")),
        }
        self.padding = 1.0 - float(lengths.sum()) / max(count * seq_len, 1)
        unpacked = 1.0 - float(lengths.sum()) / max(len(lengths) * seq_len, 1)
        self.warnings = (*warnings, packing_warning(len(lengths), count, self.padding, unpacked))
        self.examples = examples

    def __len__(self) -> int:
        return len(self.text)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The sequences at these indices."""
        tables = self.tables | self.extra | {"text": self.text}
        return {name: table[indices] for name, table in tables.items()}

    def by_text(self, outputs: np.ndarray) -> np.ndarray:
        """The outputs for each text, in the order of the texts, from those for each segment."""
        real = self.text >= 0
        ordered = np.empty((int(real.sum()), *outputs.shape[2:]), outputs.dtype)
        ordered[self.text[real]] = outputs[real]
        return ordered


# -- token sequences --------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """One token sequence of each example: its input, or its target."""

    sequences: Sequence[Sequence[int]]
    length: int
    """length of the arrays; no sequence is longer"""
    pad: int
    """id that fills them up, where segment ids are 0"""


@dataclasses.dataclass(frozen=True)
class SideFields:
    """Names of the fields of one side."""

    ids: str
    segment_ids: str
    positions: str


INPUT_FIELDS = SideFields("input_ids", "segment_ids", "positions")
TARGET_FIELDS = SideFields("target_ids", "target_segment_ids", "target_positions")


class SequenceDataset:
    """One example in each sequence, or several if `packed`, each a segment with positions of its own.

    The sides are an encoder's input and a decoder's output (“target”), with the same segment numbers, or the input
    alone; then `mask` may mark which of its tokens are targets. Fields: those of TEXT_SPEC, and TARGET_SPEC or
    MASK_SPEC.
    """

    def __init__(
        self,
        inputs: Side,
        targets: Side | None = None,
        *,
        mask: Sequence[Sequence[int]] | None = None,
        vocab_size: int,
        packed: bool = False,
        warnings: tuple[DataWarning, ...] = (),
        examples: Sequence[object] = (),
    ):
        """A dataset of token sequences.

        Args:
          inputs: what an encoder or decoder reads.
          targets: what a decoder writes, for encoder–decoders.
          mask: for each input, a value for each of its tokens, 0 for tokens that are no targets.
          vocab_size: size of the vocabulary, for n-gram baselines.
          packed: put several examples into a sequence where all their sides fit.
          warnings: what was truncated or skipped.
          examples: what the sequences were made of, kept for scoring.
        """
        sides = [inputs] if targets is None else [inputs, targets]
        lengths = [np.array([len(ids) for ids in side.sequences], np.int64) for side in sides]
        count = len(inputs.sequences)
        index = fit([side.length for side in sides], lengths) if packed else np.arange(count)
        rows = int(index.max()) + 1 if count else 0
        self.places = place(inputs.sequences, index, rows)
        self.tables = fill_tables(inputs, self.places, rows, INPUT_FIELDS)
        self.tables["type_ids"] = np.zeros_like(self.tables["input_ids"])
        self.spec: BatchSpec = dict(TEXT_SPEC)
        if targets is not None:
            self.tables |= fill_tables(targets, place(targets.sequences, index, rows), rows, TARGET_FIELDS)
            self.spec |= TARGET_SPEC
        if mask is not None:
            masks = inputs._replace(sequences=mask, pad=0)
            self.tables["target_mask"] = fill_tables(masks, self.places, rows, INPUT_FIELDS)["input_ids"]
            self.spec |= MASK_SPEC
        self.predicted, self.vocab_size, self.examples = sides[-1].sequences, vocab_size, examples
        used, width = sum(int(n.sum()) for n in lengths), sum(side.length for side in sides)
        self.padding = 1.0 - used / max(rows * width, 1)
        self.warnings = warnings
        if packed:
            unpacked = 1.0 - used / max(count * width, 1)
            self.warnings = (*warnings, packing_warning(count, rows, self.padding, unpacked))

    def __len__(self) -> int:
        return len(self.tables["input_ids"])

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The sequences at these indices."""
        return {name: table[indices] for name, table in self.tables.items()}

    def by_example(self, values: np.ndarray) -> list[np.ndarray]:
        """Of values [sequences, S] those that belong to each example's input."""
        return [values[sequence, start:stop] for sequence, start, stop, _ in self.places]

    def training_tokens(self) -> tuple[Int[np.ndarray, " N"], int]:
        """(all predicted sequences, one after another; vocabulary size), for n-gram baselines."""
        return np.concatenate([np.asarray(ids, np.int64) for ids in self.predicted]), self.vocab_size


def fit(capacities: Sequence[int], lengths: Sequence[Int[np.ndarray, " N"]]) -> Int[np.ndarray, " N"]:
    """Packs examples so that every side of each fits: the packed sequence that each example goes to.

    An example takes the larger of the fractions that its sides take of their capacities. Where these fractions add up
    to at most 1, every side fits.

    Args:
      capacities: tokens that a packed sequence holds, of each side.
      lengths: tokens of each example, of each side.
    """
    if len(capacities) == 1:
        return best_fit(lengths[0], capacities[0])
    whole = int(np.prod(capacities))
    return best_fit(np.max([n * (whole // c) for n, c in zip(lengths, capacities, strict=True)], axis=0), whole)


class Place(NamedTuple):
    """Where an example is: in which sequence, from which position to which, as which segment."""

    sequence: int
    start: int
    stop: int
    segment: int


def place(sequences: Sequence[Sequence[int]], index: Int[np.ndarray, " N"], count: int) -> list[Place]:
    """Places examples one after another in the packed sequences `index` (of `count`), segments numbered from 1."""
    start, segment = [0] * count, [0] * count
    places = []
    for i, ids in zip(index.tolist(), sequences, strict=True):
        segment[i] += 1
        places.append(Place(i, start[i], start[i] + len(ids), segment[i]))
        start[i] += len(ids)
    return places


def fill_tables(side: Side, places: Sequence[Place], count: int, fields: SideFields) -> Batch:
    """Arrays [count, length] of a side's ids, segment numbers and positions."""
    ids = np.full((count, side.length), side.pad, np.int32)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    for tokens, (index, start, stop, segment) in zip(side.sequences, places, strict=True):
        ids[index, start:stop], segments[index, start:stop] = tokens, segment
        positions[index, start:stop] = np.arange(len(tokens))
    return {fields.ids: ids, fields.segment_ids: segments, fields.positions: positions}


def packing_warning(count: int, sequences: int, padding: float, unpacked: float) -> DataWarning:
    """How much padding packing saves: `padding` of the packed sequences, `unpacked` with one example in each."""
    text = f"{count:,} texts packed into {sequences:,} sequences: {padding:.1%} padding instead of {unpacked:.1%}"
    return DataWarning("packing", count, text)
