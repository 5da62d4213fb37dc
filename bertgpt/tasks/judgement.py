"""What a task says of predictions: numbers, tables, and which label was taken for which."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Table(NamedTuple):
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]


class Confusion(NamedTuple):
    """How often each class was taken for each."""

    names: tuple[str, ...]
    counts: Int[np.ndarray, "C C"]
    """[true, predicted]"""


class Judgement(NamedTuple):
    """Predictions on a split, scored by the measures of a task."""

    metrics: dict[str, float]
    tables: tuple[Table, ...] = ()
    """per class, say"""
    confusion: Confusion | None = None


def judge_classes(names: tuple[str, ...], truth: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"]) -> Judgement:
    """Macro F1 over the classes that occur, a table of precision, recall and F1, and the confusion matrix.

    Raises:
      UserError: scikit-learn is missing.
    """
    from bertgpt.tasks.source import need

    metrics = need("sklearn.metrics", "scikit-learn")
    every = np.arange(len(names))
    columns = metrics.precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0.0)
    rows = [
        [name, *(f"{value:.3f}" for value in values), f"{int(count)}"]
        for name, *values, count in zip(names, *columns, strict=True)
    ]
    f1 = metrics.f1_score(truth, predicted, average="macro", zero_division=0.0)
    table = Table("classes", ("label", "precision", "recall", "F1", "texts"), rows)
    counts = metrics.confusion_matrix(truth, predicted, labels=every)
    return Judgement({"macro_f1": float(f1)}, (table,), Confusion(names, counts))
