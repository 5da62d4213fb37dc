"""Classes predicted against true ones."""

import numpy as np
from jaxtyping import Int

from bertgpt.types import Confusion, EvalResult, Metric, Table


def evaluate_classes(
    names: tuple[str, ...], truth: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"]
) -> EvalResult:
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
    return EvalResult((Metric("macro_f1", float(f1), True),), (table,), (Confusion(names, counts),))
