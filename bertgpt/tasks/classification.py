"""Classification and scoring of texts and pairs of texts."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from bertgpt.data.examples import EncodedTexts, Example, PackedTextDataset, TextDataset, encode_texts
from bertgpt.data.loader import Batches
from bertgpt.data.sources.text import Record, field
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.tasks.source import (
    Collected,
    Loaded,
    TaskFiles,
    labels_as_in,
    listed,
    need,
    number_of,
    numbered,
    truncated,
    warnings_of,
)
from bertgpt.types import (
    Confusion,
    Curve,
    DataConfig,
    DataRequest,
    DataWarning,
    EvalResult,
    Field,
    JsonObject,
    Labels,
    Metric,
    Split,
    Table,
    UserError,
)

BLANKS = " \t\r\n"  # around labels; other white space, such as an ideographic space, is part of a label
MAX_NUMERIC_LABELS = 32  # labels that look like numbers are inferred only up to this many

TextRows = TextDataset | PackedTextDataset


@dataclasses.dataclass(frozen=True)
class TextClassification(TaskFiles):
    """Texts, or pairs of texts, with a label, several labels or a number each."""

    labels: tuple[str, ...] = ()
    """the classes as the file writes them; their order numbers them. (): those of the training split, sorted"""
    names: tuple[str, ...] = ()
    """what predictions call the classes; (): as the file writes them"""
    text_field: str = "text"
    """column that holds the text, or in .jsonl files a list of lines"""
    second_field: str | None = None
    """column that holds the second text of a pair; None: single texts"""
    label_field: str = "label"
    """column that holds the label"""
    target: Literal["label", "labels", "number"] = "label"
    """one label for Classify and ClassifyOrdinal, any number of them for ClassifyMany, or a number for Regress"""
    separator: str = ","
    """separates several labels, where they are not a list; an empty field has none"""
    deduplicate: bool = True
    """skip texts that repeat earlier ones, in training and in splits that are cut from `path`; a validation or test
    file is always scored whole, record by record"""
    packed: bool = False
    """pack several texts into a sequence where they fit, with the same loss; `batch_size` counts sequences"""

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UserError(f"{type(self).__name__}: labels={self.labels} must be two or more different ones")
        if self.names and len(self.names) != len(self.labels):
            raise UserError(f"{type(self).__name__}: {len(self.names)} names for {len(self.labels)} labels")
        if self.packed and self.target == "labels":
            raise UserError(f"{type(self).__name__}: packed=True is for one label or number a text")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return (self.text_field,) if self.second_field is None else (self.text_field, self.second_field)

    @property
    def key_fields(self) -> tuple[str, ...]:
        return self.inputs

    @property
    def label_set(self) -> Labels:
        """The classes, or that each text has a number."""
        return Labels(self.labels, self.names, self.target)

    # -- examples -----------------------------------------------------------------------------------------------------

    def infer(self, train: DataConfig | None = None) -> "TextClassification":
        """Fills in the labels of the training split, or of `train`, the data that the model is trained on.

        Raises:
          UserError: there is only one label, or so many numbers that they are probably no classes.
        """
        if self.target == "number":
            return self
        known = labels_as_in(self, train)
        if known.values:
            return dataclasses.replace(self, labels=known.values, names=self.names or known.names)
        found = {label for record in self.records("train") for label in self._labels(record)} - {""}
        if not found:
            raise self.no_examples("train")
        if len(found) == 1:
            raise UserError(
                f"{self.path}: every training text has the label {found.pop()!r}; there is nothing to learn"
            )
        numeric = all(map(is_number, found))
        if numeric and len(found) > MAX_NUMERIC_LABELS:
            if sorted(found, key=float) != [str(i) for i in range(len(found))]:
                raise UserError(
                    f"{self.path}: {self.label_field!r} holds {len(found)} different numbers; if they name classes,"
                    " list them in data.labels; for numbers set data.target to number and the objective to Regress"
                )
        # Equal numbers, such as 1 and 1.0, are ordered as texts: the order of a set depends on the process.
        ordered = sorted(found, key=lambda label: (float(label) if numeric else 0.0, label))
        return dataclasses.replace(self, labels=tuple(ordered))

    def load(self, split: Split) -> Loaded:
        """The texts of a split with the index of their label, several indices, or a number.

        Which split a text belongs to depends on the text alone, so that a text held out here is held out of a corpus
        with the same fractions too.

        Raises:
          UserError: a label that is not in `labels`, a missing column, or no text at all.
        """
        indices = {label: i for i, label in enumerate(self.labels)}
        texts_with_labels = Collected[Any](whole=self.own_file(split) is not None, deduplicate=self.deduplicate)
        unlabelled = 0
        for record in self.records(split):
            labels, texts = self._labels(record), self._texts(record)
            if labels == [""]:
                unlabelled += 1
            else:
                texts_with_labels.add(texts, self._target(record, labels, indices))
        examples = self.selected([Example(texts, label) for texts, label in texts_with_labels.found], split)
        missing = DataWarning("unlabelled", unlabelled, "texts without a label are skipped")
        return Loaded(examples, warnings_of(missing, equal_numbers(self.labels)) + texts_with_labels.warnings)

    def _labels(self, record: Record) -> list[str]:
        if self.target != "labels":
            return [field(record, self.label_field).strip(BLANKS)]
        several = record.lists.get(self.label_field)
        if several is None:
            several = field(record, self.label_field).split(self.separator)
        return [label for part in several if (label := part.strip(BLANKS))]

    def _texts(self, record: Record) -> tuple[str, ...]:
        return tuple(self.text(record, name) for name in self.inputs)

    def _target(self, record: Record, labels: list[str], indices: dict[str, int]) -> int | float | tuple[int, ...]:
        if self.target == "number":
            return number_of(record, self.label_field)
        for label in labels:
            if label not in indices:
                where, known = f"{record.file}:{record.line}", listed(self.labels)
                raise UserError(f"{where}: unknown label {label!r:.60}; labels are {known}")
        return indices[labels[0]] if self.target == "label" else tuple(sorted({indices[label] for label in labels}))

    # -- batches ------------------------------------------------------------------------------------------------------

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split. Labelled sets are small: they are tokenised at each call and held in memory."""
        examples, warnings = self.load(request.split)
        dataset = self._dataset(examples, self._targets(examples), request.tokenizer, warnings)
        return Batches(dataset, request.batch_size, request.seed, request.shuffle)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new records, in order, without labels."""
        examples = [Example(self._texts(record)) for record in numbered(records)]
        shape = (len(examples), len(self.labels)) if self.target == "labels" else (len(examples),)
        targets = np.full(shape, 0 if self.target == "labels" else -1, np.int32)
        return Batches(self._dataset(examples, targets, tokenizer, ()), batch_size, 0, shuffle=False)

    def _targets(self, examples: Sequence[Example]) -> np.ndarray:
        if self.target == "labels":
            table = np.zeros((len(examples), len(self.labels)), np.int32)
            for row, example in zip(table, examples, strict=True):
                row[list(example.label)] = 1
            return table
        labels = [example.label for example in examples]
        return np.array(labels, np.float32 if self.target == "number" else np.int32)

    def _dataset(
        self,
        examples: Sequence[Example],
        targets: np.ndarray,
        tokenizer: Tokenizer,
        warnings: tuple[DataWarning, ...],
    ) -> TextRows:
        encoded = self._encode(examples, tokenizer)
        warnings += warnings_of(truncated(encoded.truncated, len(examples), "texts", self.seq_len))
        several = self.target == "labels"
        label = Field(targets.dtype.name, ("batch", "label") if several else ("batch",), 0 if several else -1)
        kind = PackedTextDataset if self.packed else TextDataset
        return kind(encoded, self.seq_len, {"label": targets}, {"label": label}, warnings, examples)

    def _encode(self, examples: Sequence[Example], tokenizer: Tokenizer) -> EncodedTexts:
        return encode_texts(tokenizer, [example.texts for example in examples], self.seq_len)

    # -- scores -------------------------------------------------------------------------------------------------------

    def describe(self, dataset: TextRows, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints for each record: the most probable label and all probabilities; or the number."""
        if self.target == "number":
            yield from describe_numbers(dataset.by_text(outputs["value"])[:, None], ())
            return
        probabilities, names = dataset.by_text(outputs["probabilities"]), self.label_set.shown
        if self.target == "label":
            yield from describe_classes(probabilities, names, self._predicted(dataset, outputs))
            return
        yield from describe_label_sets(probabilities, names)

    def evaluate(self, dataset: TextRows, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Macro F1 and a table of classes; for several labels F1 and exact match; for numbers two correlations."""
        names, truth = self.label_set.shown, dataset.by_text(dataset.extra["label"])
        if self.target == "number":
            return evaluate_numbers(truth, dataset.by_text(outputs["value"]))
        if self.target == "labels":
            return evaluate_label_sets(names, truth > 0, dataset.by_text(outputs["probabilities"]) > 0.5)
        return evaluate_classes(names, truth, self._predicted(dataset, outputs))

    def _predicted(self, dataset: TextRows, outputs: dict[str, np.ndarray]) -> Int[np.ndarray, " N"]:
        """The label of each text: the most probable one, or for ordered labels the one that the objective names."""
        if "number" in outputs:
            return dataset.by_text(outputs["number"])
        return dataset.by_text(outputs["probabilities"]).argmax(-1)


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def equal_numbers(labels: Sequence[str]) -> DataWarning:
    """How many labels equal an earlier one as a number and yet are classes of their own, as 1 and 1.0 are."""
    first: dict[float, str] = {}
    pairs = [
        (first[float(label)], label)
        for label in labels
        if is_number(label) and first.setdefault(float(label), label) != label
    ]
    example = " and ".join(map(repr, pairs[0])) if pairs else ""
    text = f"labels equal another one as a number, such as {example}, but are classes of their own"
    return DataWarning("contradictory", len(pairs), text)


def describe_classes(
    probabilities: Float[np.ndarray, "N C"], names: Sequence[str], predicted: Int[np.ndarray, " N"] | None = None
) -> Iterator[JsonObject]:
    """For each text the predicted class, by default the most probable one, and the probability of every class."""
    for row, best in zip(probabilities, probabilities.argmax(-1) if predicted is None else predicted, strict=True):
        every = {name: round(float(p), 4) for name, p in zip(names, row, strict=True)}
        yield {"label": names[best], "probability": round(float(row[best]), 4), "probabilities": every}


def describe_label_sets(probabilities: Float[np.ndarray, "N C"], names: Sequence[str]) -> Iterator[JsonObject]:
    """For each text the labels that are more probable than not, and the probability of each."""
    for row in probabilities:
        every = {name: round(float(p), 4) for name, p in zip(names, row, strict=True)}
        yield {"labels": [name for name, p in zip(names, row, strict=True) if p > 0.5], "probabilities": every}


def describe_numbers(values: Float[np.ndarray, "N C"], names: Sequence[str]) -> Iterator[JsonObject]:
    """For each text its number, or each of its named numbers."""
    for row in values:
        numbers = [round(float(value), 4) for value in row]
        yield {"value": numbers[0]} if len(numbers) == 1 else {"values": dict(zip(names, numbers, strict=True))}


def evaluate_classes(
    names: tuple[str, ...], truth: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"]
) -> EvalResult:
    """Macro F1 over the classes that occur, a table of precision, recall and F1, and the confusion matrix.

    Raises:
      UserError: scikit-learn is missing.
    """
    metrics = need("sklearn.metrics", "scikit-learn")
    classes = np.arange(len(names))
    columns = metrics.precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0.0)
    f1 = metrics.f1_score(truth, predicted, average="macro", zero_division=0.0)
    counts = metrics.confusion_matrix(truth, predicted, labels=classes)
    return EvalResult(
        (Metric("macro_f1", float(f1), True),), (class_table("classes", names, columns),), (Confusion(names, counts),)
    )


def class_table(title: str, names: Sequence[str], columns: Sequence[np.ndarray]) -> Table:
    """A table with precision, recall, F1 and number of texts of each class, from these four columns."""
    rows = [
        [name, *(f"{value:.3f}" for value in values), f"{int(count)}"]
        for name, *values, count in zip(names, *columns, strict=True)
    ]
    return Table(title, ("label", "precision", "recall", "F1", "texts"), rows)


def evaluate_label_sets(
    names: tuple[str, ...], truth: Bool[np.ndarray, "N C"], predicted: Bool[np.ndarray, "N C"]
) -> EvalResult:
    """For texts with any number of labels: micro and macro F1, the fraction of exact matches, and a table.

    Raises:
      UserError: scikit-learn is missing.
    """
    metrics = need("sklearn.metrics", "scikit-learn")
    columns = metrics.precision_recall_fscore_support(truth, predicted, average=None, zero_division=0.0)
    found = [
        Metric(f"{how}_f1", float(metrics.f1_score(truth, predicted, average=how, zero_division=0.0)), True)
        for how in ("micro", "macro")
    ]
    exact = Metric("exact_match", float(np.mean(np.all(truth == predicted, axis=1))), True)
    return EvalResult((*found, exact), (class_table("labels", names, columns),))


def evaluate_numbers(truth: Float[np.ndarray, " N"], predicted: Float[np.ndarray, " N"]) -> EvalResult:
    """Pearson and Spearman correlation, and a scatter plot; 0 where one side is constant and has no correlation.

    Raises:
      UserError: scipy is missing.
    """
    stats = need("scipy.stats", "scipy")
    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return EvalResult((Metric("pearson", 0.0, True), Metric("spearman", 0.0, True)))
    dots = Curve("numbers", "given", "predicted", truth, predicted, scattered=True)
    pearson = Metric("pearson", float(stats.pearsonr(truth, predicted)[0]), True)
    spearman = Metric("spearman", float(stats.spearmanr(truth, predicted)[0]), True)
    return EvalResult((pearson, spearman), figures=(dots,))
