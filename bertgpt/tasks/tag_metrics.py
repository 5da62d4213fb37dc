"""Scores of tags: entities by seqeval, words by scikit-learn."""

from collections.abc import Sequence

import numpy as np

from bertgpt.data.sources.conll import repair
from bertgpt.tasks.classification import evaluate_classes
from bertgpt.tasks.source import need
from bertgpt.types import Confusion, EvalResult, Metric, Table

Tags = list[list[str]]
MAX_KINDS = 30  # most types of entities for which a confusion matrix is drawn


def evaluate_entities(truth: Tags, predicted: Tags, ignored: Sequence[str] = ()) -> EvalResult:
    """Micro-averaged precision, recall and F1 of whole entities in BIO tags, as conlleval counts; a table of types.

    The confusion matrix counts words by the types of their true and their predicted entity.

    Args:
      truth: tags of each word of each sentence.
      predicted: as many; an I that continues nothing counts as a B.
      ignored: types that are not scored.

    Raises:
      UserError: seqeval is missing.
    """
    metrics = need("seqeval.metrics", "seqeval")
    truth, predicted = (
        [[_without(tag, ignored) for tag in repair(tags)] for tags in side] for side in (truth, predicted)
    )
    kinds = sorted({tag[2:] for side in (truth, predicted) for tags in side for tag in tags} - {""})
    if not kinds:  # seqeval fails on these
        return EvalResult(tuple(Metric(name, 0.0, True) for name in ("precision", "recall", "f1")))
    report = metrics.classification_report(truth, predicted, output_dict=True, zero_division=0)
    micro = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    rows = [
        [kind, *(f"{report[kind][name]:.3f}" for name in micro.values()), f"{int(report[kind]['support'])}"]
        for kind in kinds
    ]
    table = Table("entities", ("type", "precision", "recall", "F1", "entities"), rows)
    return EvalResult(
        tuple(Metric(name, float(report["micro avg"][key]), True) for name, key in micro.items()),
        (table,),
        (confusion_of_kinds(kinds, truth, predicted),) if len(kinds) <= MAX_KINDS else (),
    )


def _without(tag: str, ignored: Sequence[str]) -> str:
    return "O" if tag[2:] in ignored else tag


def confusion_of_kinds(kinds: Sequence[str], truth: Tags, predicted: Tags) -> Confusion:
    """How often words of each type, or O, were predicted as each."""
    names = ("O", *kinds)
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for true_tags, tags in zip(truth, predicted, strict=True):
        for true_tag, tag in zip(true_tags, tags, strict=True):
            counts[number[true_tag[2:] or "O"], number[tag[2:] or "O"]] += 1
    return Confusion(names, counts)


def evaluate_words(labels: Sequence[str], truth: Tags, predicted: Tags) -> EvalResult:
    """Accuracy over all words and macro F1 over the tags that occur, a table and a confusion matrix.

    Tags that are not among the labels, in the truth or for truncated words, count as errors.

    Raises:
      UserError: scikit-learn is missing.
    """
    pairs = [pair for both in zip(truth, predicted, strict=True) for pair in zip(*both, strict=True)]
    others = sorted({tag for pair in pairs for tag in pair} - set(labels))
    names = (*labels, *(tag or "(truncated)" for tag in others))
    number = {tag: i for i, tag in enumerate((*labels, *others))}
    known, found = np.array([[number[tag] for tag in pair] for pair in pairs], np.int64).reshape(-1, 2).T
    result = evaluate_classes(names, known, found)
    tables = tuple(table._replace(columns=(*table.columns[:-1], "words")) for table in result.tables)
    accuracy = Metric("accuracy", float(np.mean(known == found)), True)
    return result._replace(metrics=(accuracy, *result.metrics), tables=tables)
