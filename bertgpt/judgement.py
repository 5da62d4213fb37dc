"""What an evaluation or a report says: numbers, tables of texts, and which label was taken for which."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Table(NamedTuple):
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]]


class Confusion(NamedTuple):
    """How often each class was taken for each."""

    names: tuple[str, ...]
    counts: Int[np.ndarray, "C C"]
    """[true, predicted]"""


class Curve(NamedTuple):
    """Points of two quantities, to be drawn."""

    name: str
    """of its picture's file"""
    x_label: str
    y_label: str
    x: Float[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    scattered: bool = False
    """each a dot of its own, rather than a line through all"""


class EvalResult(NamedTuple):
    """Predictions on a split, scored by the measures of a task."""

    metrics: dict[str, float]
    tables: tuple[Table, ...] = ()
    """per class, say"""
    confusion: Confusion | None = None
    notes: tuple[str, ...] = ()
    """what there is to say of the data, such as how many texts are cut"""
    curves: tuple[Curve, ...] = ()

    def add(self, other: "EvalResult") -> "EvalResult":
        """Both, the metrics of the other over its own."""
        return EvalResult(
            self.metrics | other.metrics,
            self.tables + other.tables,
            other.confusion or self.confusion,
            self.notes + other.notes,
            self.curves + other.curves,
        )
