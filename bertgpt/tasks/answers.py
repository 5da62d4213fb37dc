"""How answers are scored: exact match and F1 by SQuAD's official script (Rajpurkar et al. 2016, 2018)."""

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
    """Lower case, without ASCII punctuation and the articles a, an, the; one space between words. In that order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truth: str) -> float:
    """1 if both are the same when normalised, else 0."""
    return float(normalize_answer(answer) == normalize_answer(truth))


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of the shares of words that the two have in common, counted with repetition."""
    found, wanted = normalize_answer(answer).split(), normalize_answer(truth).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2.0 * common / (len(found) + len(wanted))


class Scores(NamedTuple):
    """Of each question, the best over its correct answers."""

    exact: Float[np.ndarray, " N"]
    f1: Float[np.ndarray, " N"]


def score_answers(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> Scores:
    """Scores of answers, of which "" says that there is none; the truth of unanswerable questions is ().

    As in the official script, a correct answer that vanishes when normalised counts as none at all.
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
    """The threshold, and its mean score, at which it is best to answer just the questions of surplus ≤ threshold.

    Args:
      surplus: by how much “no answer” outscores the best answer.
      answered: the score of each question if it is answered; if not, it is 1 where `unanswerable`, else 0.
      unanswerable: which questions have no answer.

    Returns:
      (threshold, halfway between two questions; mean score)
    """
    order = np.argsort(surplus, kind="stable")
    gain = (answered - unanswerable)[order]
    totals = float(np.sum(unanswerable)) + np.concatenate([[0.0], np.cumsum(gain)])
    ordered = surplus[order].astype(np.float64)
    edges = np.concatenate([ordered[:1] - 1.0, (ordered[:-1] + ordered[1:]) / 2.0, ordered[-1:] + 1.0])
    # Between two questions of the same surplus there is no threshold.
    possible = np.concatenate([[True], ordered[:-1] < ordered[1:], [True]])
    best = int(np.argmax(np.where(possible, totals, -np.inf)))
    return float(edges[best]), float(totals[best]) / len(surplus)
