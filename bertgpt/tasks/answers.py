"""Scores of answers: exact match and F1 as in SQuAD's official script (Rajpurkar et al. 2016, 2018)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-cases, removes ASCII punctuation, then the articles a, an, the, then superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truth: str) -> float:
    """1 if both are equal after normalisation, else 0."""
    return float(normalize_answer(answer) == normalize_answer(truth))


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer, counted with repetition."""
    found, wanted = normalize_answer(answer).split(), normalize_answer(truth).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2.0 * common / (len(found) + len(wanted))


class Scores(NamedTuple):
    """Scores of each question: the best over its correct answers."""

    exact: Float[np.ndarray, " N"]
    f1: Float[np.ndarray, " N"]


def score_answers(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> Scores:
    """Scores answers against the correct ones.

    Args:
      answers: predicted texts; "" means “no answer”.
      truths: the correct answers of each question; () for unanswerable questions. As in the official script, a correct
        answer that is empty after normalisation does not count.
    """
    pairs = [
        (answer, [truth for truth in some if normalize_answer(truth)] or [""])
        for answer, some in zip(answers, truths, strict=True)
    ]
    return Scores(
        np.array([max(exact_match(answer, truth) for truth in some) for answer, some in pairs]),
        np.array([max(f1(answer, truth) for truth in some) for answer, some in pairs]),
    )


def best_threshold(
    surplus: Float[np.ndarray, " N"], answered: Float[np.ndarray, " N"], unanswerable: Bool[np.ndarray, " N"]
) -> tuple[float, float]:
    """The threshold for which answering exactly the questions of surplus ≤ threshold has the best mean score.

    Args:
      surplus: score of “no answer” minus that of the best answer.
      answered: the score of each question if it is answered; otherwise its score is 1 where `unanswerable`, else 0.
      unanswerable: which questions have no answer.

    Returns:
      (threshold, halfway between two questions; mean score)
    """
    order = np.argsort(surplus, kind="stable")
    gain = (answered - unanswerable)[order]
    totals = float(np.sum(unanswerable)) + np.concatenate([[0.0], np.cumsum(gain)])
    ordered = surplus[order].astype(np.float64)
    edges = np.concatenate([ordered[:1] - 1.0, (ordered[:-1] + ordered[1:]) / 2.0, ordered[-1:] + 1.0])
    # No threshold separates two questions of the same surplus.
    possible = np.concatenate([[True], ordered[:-1] < ordered[1:], [True]])
    best = int(np.argmax(np.where(possible, totals, -np.inf)))
    return float(edges[best]), float(totals[best]) / len(surplus)
