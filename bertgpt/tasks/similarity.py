"""Pairs of texts for bi-encoders, which read each text alone: similarity by degree, and retrieval."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.examples import TextDataset, encode_texts
from bertgpt.data.loader import Batches
from bertgpt.data.packing import Batch
from bertgpt.data.sources.text import Record, Split, clean, field, record_of, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.classification import evaluate_numbers, is_number
from bertgpt.tasks.source import TaskFiles, cut_note, noted, put_once, some_of
from bertgpt.types import Curve, DataRequest, EvalResult, Metric, UserError

TOP = (1, 5, 10)  # ranks at which retrieval is scored


@dataclasses.dataclass(frozen=True)
class TextPairs(TaskFiles):
    """Two texts a record, with a degree of similarity or just because they belong together."""

    first_field: str = "text1"
    """column that holds the first text"""
    second_field: str = "text2"
    """column that holds the second text"""
    label_field: str | None = "label"
    """column that holds the similarity, a number; None: every pair belongs together"""
    only: str | None = None
    """use only the records whose `label_field` is this, as pairs that belong together"""

    def __post_init__(self):
        super().__post_init__()
        if self.only is not None and self.label_field is None:
            raise UserError("TextPairs: only=… needs a label_field")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return self.first_field, self.second_field

    @property
    def key_fields(self) -> tuple[str, ...]:
        return self.inputs

    def examples(self, split: Split) -> tuple[list[tuple[str, str]], list[float]]:
        """The cleaned pairs of a split, each once, and their similarity; 1 where all belong together.

        Raises:
          UserError: a similarity that is no number, a missing column, or no pair at all.
        """
        return self._read(split)[:2]

    def _read(self, split: Split) -> tuple[list[tuple[str, str]], list[float], tuple[str, ...]]:
        """(pairs, similarities, notes) of a split."""
        found: dict[tuple[str, str], float] = {}
        counts: Counter[str] = Counter()
        for record in self.records(split):
            pair = self._texts(record)
            value = "1" if self.label_field is None else field(record, self.label_field)
            if self.only is not None:
                if value != self.only:
                    continue
                value = "1"
            if not is_number(value):
                raise UserError(f"{record.file}:{record.line}: {self.label_field!r} is {value!r}, not a number")
            put_once(found, pair if all(pair) else (), float(value), counts)
        if not found:
            raise self.none_of(split)
        pairs = some_of(list(found), self.max_examples if split == "train" else None, self.subset)
        return pairs, [found[pair] for pair in pairs], noted(*((count, what) for what, count in counts.items()))

    def _texts(self, record: Record) -> tuple[str, str]:
        first, second = (clean("\n".join(texts_of(record, name)), self.strip_html) for name in self.inputs)
        return first, second

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split, held in memory."""
        pairs, labels, notes = self._read(request.split)
        rows = PairedDataset(pairs, labels, request.tokenizer, self.seq_len, notes)
        return Batches(rows, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new pairs, in order, without labels."""
        pairs = [self._texts(record_of(record, "record", number)) for number, record in enumerate(records, start=1)]
        rows = PairedDataset(pairs, [float("nan")] * len(pairs), tokenizer, self.seq_len)
        return Batches(rows, batch_size, 0, shuffle=False)

    def describe(self, rows: "PairedDataset", outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each pair: the cosine of its vectors."""
        del rows
        yield from ({"similarity": round(float(value), 4)} for value in outputs["cosine"])

    def evaluate(self, split: Split, rows: "PairedDataset", outputs: dict[str, np.ndarray]) -> EvalResult:
        """Correlations with the given similarity; or, where all pairs belong together, how well each finds its own."""
        del split
        if self.label_field is not None and self.only is None:
            return evaluate_numbers(rows.extra["label"], outputs["cosine"])
        return evaluate_retrieval(outputs["first"], outputs["second"])


class PairedDataset:
    """[CLS] A [SEP] and [CLS] B [SEP] in rows of their own: arrays [B, 2, S]."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        labels: Sequence[float],
        tokenizer: Tokenizer,
        seq_len: int,
        notes: tuple[str, ...] = (),
    ):
        encoded = encode_texts(tokenizer, [text for pair in pairs for text in pair], None, seq_len)
        self.rows = TextDataset(encoded, seq_len, {})
        self.extra = {"label": np.array(labels, np.float32)}
        self.padding = self.rows.padding
        self.notes = notes + cut_note(encoded.cut, 2 * len(pairs), "texts", seq_len)

    def __len__(self) -> int:
        return len(self.rows) // 2

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        both = self.rows.gather((2 * rows[:, None] + np.arange(2)).ravel())
        paired = {name: array.reshape(len(rows), 2, -1) for name, array in both.items()}
        return paired | {name: value[rows] for name, value in self.extra.items()}


def evaluate_retrieval(queries: Float[np.ndarray, "N D"], answers: Float[np.ndarray, "N D"]) -> EvalResult:
    """For each first text, the rank of its own second text among all: recall at several ranks, mean reciprocal rank.

    Of texts that are as near, half come before it.
    """
    ranks = []
    for start in range(0, len(queries), 1024):  # a thousand rows of the table at a time
        cosines = queries[start : start + 1024] @ answers.T
        own = cosines[np.arange(len(cosines)), start + np.arange(len(cosines))]
        nearer, as_near = np.sum(cosines > own[:, None], axis=1), np.sum(cosines == own[:, None], axis=1)
        ranks.append(nearer + (as_near - 1) / 2)
    rank = np.concatenate(ranks)
    metrics = [Metric(f"recall_at_{n}", float(np.mean(rank < n)), True) for n in TOP]
    metrics.append(Metric("mean_reciprocal_rank", float(np.mean(1.0 / (rank + 1))), True))
    first = np.arange(1, min(len(rank), 100) + 1)
    found = np.array([np.mean(rank < n) for n in first])
    curve = Curve("recall", "texts looked at", "share whose own is among them", first, found)
    return EvalResult(tuple(metrics), figures=(curve,))
