"""Pairs of texts for bi-encoders, which read each text separately: semantic similarity and retrieval."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.examples import Example, TextDataset, encode_texts
from bertgpt.data.loader import Batches
from bertgpt.data.sources.text import Record, field
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.classification import evaluate_numbers
from bertgpt.tasks.source import Collected, Loaded, TaskFiles, number_of, numbered, truncated, warnings_of
from bertgpt.types import (
    TEXT_SPEC,
    Batch,
    BatchSpec,
    Curve,
    DataRequest,
    DataWarning,
    EvalResult,
    Field,
    JsonObject,
    Labels,
    Metric,
    Split,
    UserError,
)

RANKS = (1, 5, 10)  # at which recall is reported


@dataclasses.dataclass(frozen=True)
class TextPairs(TaskFiles):
    """Pairs of texts, with a similarity, or without one where the two texts of a pair simply belong together."""

    first_field: str = "text1"
    """column that holds the first text"""
    second_field: str = "text2"
    """column that holds the second text"""
    label_field: str | None = "label"
    """column that holds the similarity, a number; None: every pair belongs together"""
    only: str | None = None
    """use only the records whose `label_field` is this, as pairs that belong together"""
    deduplicate: bool = True
    """skip pairs that repeat earlier ones, in training and in splits that are cut from `path`; a validation or test
    file is always scored whole, record by record"""

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

    @property
    def scored(self) -> bool:
        """Whether pairs have a similarity."""
        return self.label_field is not None and self.only is None

    @property
    def label_set(self) -> Labels:
        """Whether each pair has a number."""
        return Labels(kind="number" if self.scored else "none")

    def load(self, split: Split) -> Loaded:
        """The pairs of a split with their similarity; 1 where all belong together.

        Raises:
          UserError: a similarity is no number, a column is missing, or there is no pair.
        """
        pairs = Collected[float](whole=self.own_file(split) is not None, deduplicate=self.deduplicate)
        for record in self.records(split):
            value: float | None = 1.0
            if self.only is not None and field(record, self.label_field) != self.only:
                continue
            if self.scored:
                value = number_of(record, self.label_field)
            if value is None:
                raise UserError(f"{record.file}:{record.line}: {self.label_field!r} is empty, not a number")
            pairs.add(self._texts(record), value)
        examples = [Example(texts, label) for texts, label in pairs.found]
        return Loaded(self.selected(examples, split), pairs.warnings)

    def _texts(self, record: Record) -> tuple[str, str]:
        return self.text(record, self.first_field), self.text(record, self.second_field)

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split, held in memory."""
        examples, warnings = self.load(request.split)
        dataset = PairedDataset(examples, request.tokenizer, self.seq_len, warnings)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new pairs, in order, without labels."""
        examples = [Example(self._texts(record), float("nan")) for record in numbered(records)]
        return Batches(PairedDataset(examples, tokenizer, self.seq_len), batch_size, 0, shuffle=False)

    def describe(self, dataset: "PairedDataset", outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each pair: the cosine similarity of its embeddings."""
        del dataset
        yield from ({"similarity": round(float(value), 4)} for value in outputs["cosine"])

    def evaluate(self, dataset: "PairedDataset", outputs: dict[str, np.ndarray]) -> EvalResult:
        """Correlations with the given similarity; where all pairs belong together, retrieval of the second texts."""
        if self.scored:
            return evaluate_numbers(dataset.extra["label"], outputs["cosine"])
        return evaluate_retrieval(outputs["first"], outputs["second"])


class PairedDataset:
    """[CLS] A [SEP] and [CLS] B [SEP] as separate sequences: arrays [batch, 2, sequence]; `label` is a number."""

    spec: BatchSpec = {
        **{name: declared._replace(axes=("batch", "text", "sequence")) for name, declared in TEXT_SPEC.items()},
        "label": Field("float32", ("batch",), -1),
    }

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        seq_len: int,
        warnings: tuple[DataWarning, ...] = (),
    ):
        texts = [(text,) for example in examples for text in example.texts]
        encoded = encode_texts(tokenizer, texts, seq_len)
        self.singles = TextDataset(encoded, seq_len, {}, {})
        self.examples = examples
        self.extra = {"label": np.array([example.label for example in examples], np.float32)}
        self.padding = self.singles.padding
        self.warnings = warnings + warnings_of(truncated(encoded.truncated, len(texts), "texts", seq_len))

    def __len__(self) -> int:
        return len(self.examples)

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The pairs at these indices."""
        both = self.singles.gather((2 * indices[:, None] + np.arange(2)).ravel())
        paired = {name: array.reshape(len(indices), 2, -1) for name, array in both.items()}
        return paired | {name: values[indices] for name, values in self.extra.items()}


def evaluate_retrieval(queries: Float[np.ndarray, "N D"], answers: Float[np.ndarray, "N D"]) -> EvalResult:
    """Ranks each query's own answer among all answers: recall at several ranks, and the mean reciprocal rank.

    Of the answers that are exactly as similar as its own, half are ranked before it.
    """
    ranks = []
    for start in range(0, len(queries), 1024):  # a thousand queries at a time bound the memory
        cosines = queries[start : start + 1024] @ answers.T
        own = cosines[np.arange(len(cosines)), start + np.arange(len(cosines))]
        nearer, as_near = np.sum(cosines > own[:, None], axis=1), np.sum(cosines == own[:, None], axis=1)
        ranks.append(nearer + (as_near - 1) / 2)
    rank = np.concatenate(ranks)
    metrics = [Metric(f"recall_at_{n}", float(np.mean(rank < n)), True) for n in RANKS]
    metrics.append(Metric("mean_reciprocal_rank", float(np.mean(1.0 / (rank + 1))), True))
    first = np.arange(1, min(len(rank), 100) + 1)
    recall = np.array([np.mean(rank < n) for n in first])
    curve = Curve("recall", "answers retrieved", "recall", first, recall)
    return EvalResult(tuple(metrics), figures=(curve,))
