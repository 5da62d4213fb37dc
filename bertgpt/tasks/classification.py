"""Classification and scoring of texts and pairs of texts: labelled records as data of a fine-tuning experiment."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from bertgpt.data.examples import PackedTextDataset, TextDataset, encode_texts
from bertgpt.data.loader import Batches
from bertgpt.data.sources.text import Record, Split, clean, field, record_of, texts_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.class_metrics import evaluate_classes
from bertgpt.tasks.source import SEPARATOR, TaskFiles, cut_note, labels_as_in, need, noted, put_once, some_of
from bertgpt.types import Curve, DataRequest, EvalResult, Metric, Table, UserError

UNLABELLED = "texts without a label are left out"
FEW = 32  # labels at most that are taken from the data without being named, where they look like numbers


@dataclasses.dataclass(frozen=True)
class TextClassification(TaskFiles):
    """Texts, or pairs of texts, with a label, several labels or a number each."""

    labels: tuple[str, ...] = ()
    """the classes as the file writes them; their order numbers them. (): those of the training split, sorted"""
    names: tuple[str, ...] = ()
    """what to call the classes in predictions; (): as the file writes them"""
    text_field: str = "text"
    """column that holds the text, or of .jsonl a list of lines"""
    second_field: str | None = None
    """column that holds the second text of a pair; None: single texts"""
    label_field: str = "label"
    """column that holds the label"""
    target: Literal["label", "labels", "number"] = "label"
    """one label for Classify and ClassifyOrdinal, any number of them for ClassifyMany, or a number for Regress"""
    separator: str = ","
    """what stands between several labels, where they are no list; an empty field has none"""
    packed: bool = False
    """several texts in a row where they fit, with the same loss; `batch_size` counts rows"""

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UserError(f"TextClassification: labels={self.labels} must be two or more different ones")
        if self.names and len(self.names) != len(self.labels):
            raise UserError(f"TextClassification: {len(self.names)} names for {len(self.labels)} labels")
        if self.packed and self.target == "labels":
            raise UserError("TextClassification: packed=True is for one label or number a text")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.text_field,) if self.second_field is None else (self.text_field, self.second_field)

    @property
    def key_fields(self) -> tuple[str, ...]:
        return self.inputs

    def infer(self, train: Any = None) -> "TextClassification":
        """With the labels of the training split, or of `train`, the data that the model is trained on.

        Raises:
          UserError: there is only one label, or so many that they must be numbers or mistakes.
        """
        if self.target == "number":
            return self
        if labels := labels_as_in(self, train):
            return dataclasses.replace(self, labels=labels, names=self.names or getattr(train, "names", ()))
        found = {label for record in self.records("train") for label in self._labels(record)} - {""}
        if not found:
            raise self.none_of("train")
        if len(found) == 1:
            raise UserError(
                f"{self.path}: every training text has the label {found.pop()!r}; there is nothing to learn"
            )
        numeric = sum(map(is_number, found)) == len(found)
        if numeric and len(found) > FEW and sorted(found, key=float) != [str(i) for i in range(len(found))]:
            raise UserError(
                f"{self.path}: {self.label_field!r} holds {len(found)} different numbers; if they name classes, list"
                " them in data.labels; for numbers set data.target to number and the objective to Regress"
            )
        return dataclasses.replace(self, labels=tuple(sorted(found, key=float if numeric else None)))

    def examples(self, split: Split) -> tuple[list[str], list[Any]]:
        """The cleaned texts of a split, each once, and their label numbers (of several labels, tuples; or numbers).

        A pair is one text here, with a separator character in it. Which split a text belongs to depends on the text
        alone, so that a text held out here is held out of a corpus with the same fractions too.

        Raises:
          UserError: a label that is not in `labels`, a missing column, or no text at all.
        """
        texts, targets, _ = self._read(split)
        return texts, targets

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. Labelled sets are small: they are tokenised anew each time, and held in memory."""
        texts, targets, notes = self._read(request.split)
        rows = self._rows(texts, self._array(targets), request.tokenizer, notes)
        rows.examples = texts, targets
        return Batches(rows, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new records, in order, without labels."""
        named = [record_of(record, "record", number) for number, record in enumerate(records, start=1)]
        texts = [SEPARATOR.join(self._texts(record)) for record in named]
        unknown = np.full(len(texts), -1, np.int32)
        target = np.zeros((len(texts), len(self.labels)), np.int32) if self.target == "labels" else unknown
        return Batches(self._rows(texts, target, tokenizer, ()), batch_size, 0, shuffle=False)

    def describe(self, rows: Any, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each record: the likeliest label and the probability of each; or the number."""
        if self.target == "number":
            yield from ({"value": round(float(value), 4)} for value in rows.by_text(outputs["value"]))
            return
        probabilities, names = rows.by_text(outputs["probabilities"]), self.names or self.labels
        if self.target == "label":
            yield from describe_classes(probabilities, names, self._picked(rows, outputs))
            return
        for row in probabilities:
            every = {name: round(float(p), 4) for name, p in zip(names, row, strict=True)}
            yield {"labels": [name for name, p in every.items() if p > 0.5], "probabilities": every}

    def evaluate(self, split: Split, rows: Any, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Macro F1 and a table of classes; of several labels F1 and exact matches; of numbers two correlations."""
        del split
        names, truth = self.names or self.labels, rows.by_text(rows.extra["label"])
        if self.target == "number":
            return evaluate_numbers(truth, rows.by_text(outputs["value"]))
        probabilities = rows.by_text(outputs["probabilities"])
        if self.target == "labels":
            return evaluate_sets(names, truth > 0, probabilities > 0.5)
        return evaluate_classes(names, truth, self._picked(rows, outputs))

    def _picked(self, rows: Any, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """The number of the label of each text: the likeliest one, or of labels in an order what the objective says."""
        if "number" in outputs:
            return rows.by_text(outputs["number"])
        return rows.by_text(outputs["probabilities"]).argmax(-1)

    def _labels(self, record: Record) -> list[str]:
        if self.target != "labels":
            return [field(record, self.label_field).strip()]
        if self.label_field in record.lists:
            return record.lists[self.label_field]
        return [part.strip() for part in field(record, self.label_field).split(self.separator) if part.strip()]

    def _read(self, split: Split) -> tuple[list[str], list[Any], tuple[str, ...]]:
        """(texts, targets, notes) of a split."""
        numbers = {label: i for i, label in enumerate(self.labels)}
        found: dict[str, Any] = {}
        counts: Counter[str] = Counter()
        for record in self.records(split):
            labels, texts = self._labels(record), self._texts(record)
            if labels == [""]:
                counts[UNLABELLED] += 1
                continue
            put_once(found, SEPARATOR.join(texts) if all(texts) else "", self._target(record, labels, numbers), counts)
        if not found:
            raise self.none_of(split)
        texts = some_of(list(found), self.max_examples if split == "train" else None, self.subset)
        return texts, [found[text] for text in texts], noted(*((count, what) for what, count in counts.items()))

    def _texts(self, record: Record) -> list[str]:
        return [clean("\n".join(texts_of(record, name)), self.strip_html) for name in self.inputs]

    def _target(self, record: Record, labels: list[str], numbers: dict[str, int]) -> Any:
        if self.target == "number":
            if not is_number(labels[0]):
                raise UserError(f"{record.file}:{record.line}: {self.label_field!r} is {labels[0]!r}, not a number")
            return float(labels[0])
        for label in labels:
            if label not in numbers:
                known = ", ".join(map(repr, self.labels))
                raise UserError(f"{record.file}:{record.line}: unknown label {label!r}; labels are {known}")
        return numbers[labels[0]] if self.target == "label" else tuple(sorted({numbers[label] for label in labels}))

    def _array(self, targets: Sequence[Any]) -> np.ndarray:
        if self.target == "labels":
            table = np.zeros((len(targets), len(self.labels)), np.int32)
            for row, some in zip(table, targets, strict=True):
                row[list(some)] = 1
            return table
        return np.array(targets, np.float32 if self.target == "number" else np.int32)

    def _rows(
        self, texts: Sequence[str], targets: np.ndarray, tokenizer: Tokenizer, notes: tuple[str, ...]
    ) -> TextDataset | PackedTextDataset:
        if self.second_field is None:
            firsts, seconds = texts, None
        else:
            firsts, seconds = zip(*(text.split(SEPARATOR) for text in texts), strict=True)
        encoded = encode_texts(tokenizer, firsts, seconds, self.seq_len)
        notes = (*notes, *cut_note(encoded.cut, len(texts), "texts", self.seq_len))
        return (PackedTextDataset if self.packed else TextDataset)(encoded, self.seq_len, {"label": targets}, notes)


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def describe_classes(
    probabilities: np.ndarray, names: Sequence[str], picked: np.ndarray | None = None
) -> Iterator[dict[str, Any]]:
    """For each row, the class that was picked, else the likeliest, and the probability of every one."""
    for row, best in zip(probabilities, probabilities.argmax(-1) if picked is None else picked, strict=True):
        every = {name: round(float(p), 4) for name, p in zip(names, row, strict=True)}
        yield {"label": names[best], "probability": round(float(row[best]), 4), "probabilities": every}


def evaluate_sets(names: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> EvalResult:
    """Several labels a text: micro and macro F1, the share of texts with exactly the right ones, a table."""
    metrics = need("sklearn.metrics", "scikit-learn")
    columns = metrics.precision_recall_fscore_support(truth, predicted, average=None, zero_division=0.0)
    rows = [
        [name, *(f"{value:.3f}" for value in values), f"{int(count)}"]
        for name, *values, count in zip(names, *columns, strict=True)
    ]
    found = [
        Metric(f"{how}_f1", float(metrics.f1_score(truth, predicted, average=how, zero_division=0.0)), True)
        for how in ("micro", "macro")
    ]
    exact = Metric("exact_match", float(np.mean(np.all(truth == predicted, axis=1))), True)
    table = Table("labels", ("label", "precision", "recall", "F1", "texts"), rows)
    return EvalResult((*found, exact), (table,))


def evaluate_numbers(truth: np.ndarray, predicted: np.ndarray) -> EvalResult:
    """Pearson's and Spearman's correlation, 0 where one side is constant, which has none; and both numbers as dots."""
    stats = need("scipy.stats", "scipy")
    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return EvalResult((Metric("pearson", 0.0, True), Metric("spearman", 0.0, True)))
    dots = Curve("numbers", "given", "predicted", truth, predicted, scattered=True)
    pearson = Metric("pearson", float(stats.pearsonr(truth, predicted)[0]), True)
    spearman = Metric("spearman", float(stats.spearmanr(truth, predicted)[0]), True)
    return EvalResult((pearson, spearman), figures=(dots,))
