"""Tags judged: entities by seqeval, words by scikit-learn; and a baseline that knows words but no sentences."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertgpt.data.sources.conll import Sentence, repair
from bertgpt.tasks.baselines import Prepared
from bertgpt.tasks.class_metrics import evaluate_classes
from bertgpt.tasks.source import need
from bertgpt.types import Confusion, EvalResult, Metric, Table

Tags = list[list[str]]
MOST_KINDS = 30  # that a confusion matrix is drawn of


def evaluate_entities(truth: Tags, predicted: Tags, ignored: Sequence[str] = ()) -> EvalResult:
    """Micro-averaged precision, recall and F1 of whole entities in BIO tags, as conlleval counts; a table of kinds.

    The confusion matrix is of words: how often one in an entity of each kind was taken for one of another.

    Args:
      truth: tags of each word of each sentence.
      predicted: as many; an I that continues nothing is taken for a B.
      ignored: kinds that are not scored.

    Raises:
      UserError: seqeval is missing.
    """
    metrics = need("seqeval.metrics", "seqeval")
    truth, predicted = (
        [[_without(tag, ignored) for tag in repair(tags)] for tags in side] for side in (truth, predicted)
    )
    kinds = sorted({tag[2:] for side in (truth, predicted) for tags in side for tag in tags} - {""})
    if not kinds:  # which seqeval cannot count
        return EvalResult(tuple(Metric(name, 0.0, True) for name in ("precision", "recall", "f1")))
    report = metrics.classification_report(truth, predicted, output_dict=True, zero_division=0)
    micro = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    rows = [
        [kind, *(f"{report[kind][name]:.3f}" for name in micro.values()), f"{int(report[kind]['support'])}"]
        for kind in kinds
    ]
    table = Table("entities", ("kind", "precision", "recall", "F1", "entities"), rows)
    return EvalResult(
        tuple(Metric(name, float(report["micro avg"][key]), True) for name, key in micro.items()),
        (table,),
        (confusion_of_kinds(kinds, truth, predicted),) if len(kinds) <= MOST_KINDS else (),
    )


def _without(tag: str, ignored: Sequence[str]) -> str:
    return "O" if tag[2:] in ignored else tag


def confusion_of_kinds(kinds: Sequence[str], truth: Tags, predicted: Tags) -> Confusion:
    """[true kind, predicted kind] of words, O among them."""
    names = ("O", *kinds)
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for true_tags, tags in zip(truth, predicted, strict=True):
        for true_tag, tag in zip(true_tags, tags, strict=True):
            counts[number[true_tag[2:] or "O"], number[tag[2:] or "O"]] += 1
    return Confusion(names, counts)


def evaluate_words(labels: Sequence[str], truth: Tags, predicted: Tags) -> EvalResult:
    """Accuracy over all words and macro F1 over the tags that occur, a table and a confusion matrix.

    Tags that are not among the labels, in the truth or for words that were cut off, count as wrong.

    Raises:
      UserError: scikit-learn is missing.
    """
    pairs = [pair for both in zip(truth, predicted, strict=True) for pair in zip(*both, strict=True)]
    others = sorted({tag for pair in pairs for tag in pair} - set(labels))
    names = (*labels, *(tag or "(cut off)" for tag in others))
    number = {tag: i for i, tag in enumerate((*labels, *others))}
    known, found = np.array([[number[tag] for tag in pair] for pair in pairs], np.int64).reshape(-1, 2).T
    result = evaluate_classes(names, known, found)
    tables = tuple(table._replace(columns=(*table.columns[:-1], "words")) for table in result.tables)
    accuracy = Metric("accuracy", float(np.mean(known == found)), True)
    return result._replace(metrics=(accuracy, *result.metrics), tables=tables)


@dataclasses.dataclass(frozen=True)
class MostFrequentTag:
    """Each word's most frequent tag in training, or for unknown words the most frequent tag of all.

    Where there are predicates, a word and a word that is the predicate are two.
    """

    name: str = "most frequent tag"
    """name in tables"""

    def score(self, data: Any, train: Any, split: str, prepared: Prepared) -> dict[str, float]:
        """The metrics of the task on a split."""
        del prepared
        seen: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
        for sentence in train.dataset.sentences:
            for key, tag in zip(keys_of(sentence), sentence.tags, strict=True):
                seen[key][tag] += 1
        total: Counter[str] = sum(seen.values(), Counter())
        other = total.most_common(1)[0][0]
        best = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}
        sentences = data.examples(split)
        predicted = [[best.get(key, other) for key in keys_of(sentence)] for sentence in sentences]
        return data.evaluate_tags(sentences, predicted).values


def keys_of(sentence: Sentence) -> list[tuple[str, bool]]:
    """What a word is looked up by."""
    return [(word, number == sentence.predicate) for number, word in enumerate(sentence.words)]
