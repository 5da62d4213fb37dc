"""What a model must beat: predictors without a network, scored on exactly the held-out data the model is scored on."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.sources.text import CJK
from bertgpt.objectives.core import Targets
from bertgpt.types import UserError

# Words of two letters or more, which is scikit-learn's own rule; each character of Chinese and Japanese is one.
WORD = rf"[{CJK}]|[^\W{CJK}]{{2,}}"
# Yields what the objective asks for, batch by batch over a held-out split, as numpy arrays.
Prepared = Callable[[], Iterator[Targets]]


@dataclasses.dataclass(frozen=True)
class Majority:
    """Always the most frequent training label."""

    name: str = "majority class"
    """name in tables"""

    def score(self, data: Any, train: Any, split: str, prepared: Prepared) -> dict[str, float]:
        """Accuracy on a split of a classification task."""
        del prepared
        labels = np.asarray(data.examples(split)[1])
        seen = train.dataset.extra["label"]
        return {"accuracy": float(np.mean(labels == np.bincount(seen[seen >= 0]).argmax()))}


@dataclasses.dataclass(frozen=True)
class TfidfLogisticRegression:
    """Logistic regression on TF-IDF weighted words and word pairs (scikit-learn), fitted to the same training texts.

    Chinese and Japanese characters are words.
    """

    name: str = "TF-IDF + logistic regression"
    """name in tables"""

    def score(self, data: Any, train: Any, split: str, prepared: Prepared) -> dict[str, float]:
        """Accuracy on a split; the regularisation is the best of a small grid on the validation split."""
        del prepared
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise UserError("the TF-IDF baseline needs scikit-learn: pip install 'bertgpt[demo]'") from None
        texts, labels = train.dataset.examples
        held_out, truth = data.examples(split)
        if len(set(labels)) < 2:  # of a few examples
            return {"accuracy": float(np.mean(np.array(truth) == labels[0]))}
        vectorizer, features = tf_idf(texts)
        fits = [LogisticRegression(C=c, max_iter=1000).fit(features, labels) for c in (1.0, 3.0, 10.0, 30.0)]
        try:
            known, right = data.examples("validation")
        except UserError:  # there is none
            best = fits[0]
        else:
            known = vectorizer.transform(known)
            best = max(fits, key=lambda fit: fit.score(known, right))
        return {"accuracy": float(best.score(vectorizer.transform(held_out), truth))}


def tf_idf(texts: Sequence[str]) -> tuple[Any, Any]:
    """(a vectorizer fitted to the texts, their features), of words and pairs that occur in two texts if any do."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for least in (2, 1):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=least, sublinear_tf=True, token_pattern=WORD)
        try:
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError:  # no such word
            continue
    raise UserError("TF-IDF: the training texts have no words")


@dataclasses.dataclass(frozen=True)
class NGram:
    """Cross-entropy of a count model on the very words that the objective asks for, in the same tokens.

    order 1: p(w) = (c(w) + 1) / (N + V).
    order 2: p(w | v) = (c(v, w) + λ p(w)) / (c(v) + λ), v the token to the left *before* corruption: it sees a token
      that a masked model may see masked. λ is the best of a grid on the scored data itself. Both choices favour the
      baseline.

    Counts are those of the training text with the end of each document in it, which causal models are asked for too.
    """

    order: int
    """1: unigram, 2: bigram"""

    def __post_init__(self):
        if self.order not in (1, 2):
            raise UserError(f"NGram: order={self.order} must be 1 or 2")

    @property
    def name(self) -> str:
        return {1: "unigram", 2: "bigram"}[self.order]

    def score(self, data: Any, train: Any, split: str, prepared: Prepared) -> dict[str, float]:
        """Mean −log p, in nats, and accuracy of the likeliest word, per word asked for.

        Raises:
          UserError: the objective asks for no words.
        """
        del data, split
        tokens, vocab_size = train.dataset.training_tokens()
        metric, left, word = asked_words(prepared())
        unigram = (np.bincount(tokens, minlength=vocab_size) + 1.0) / (len(tokens) + vocab_size)
        if self.order == 1:
            loss, best = -np.mean(np.log(unigram[word])), np.full(vocab_size, unigram.argmax())
        else:
            loss, best = bigram(tokens, unigram, left, word)
        return {f"{metric}_loss": float(loss), f"{metric}_accuracy": float(np.mean(best[left] == word))}


def asked_words(targets: Iterator[Targets]) -> tuple[str, Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """(metric, token to the left, word) of every word asked for."""
    metric, pairs = None, [np.zeros((2, 0), np.int64)]
    for batch in targets:
        metric, asked = batch.metric, batch.weight > 0
        pairs.append(np.stack([batch.left[asked], batch.word[asked]]).astype(np.int64))
    left, word = np.concatenate(pairs, axis=1)
    if not len(word):
        raise UserError("NGram: the objective asks for no words on this split; remove the baseline")
    return metric, left, word


def bigram(
    tokens: Int[np.ndarray, " N"],
    unigram: Float[np.ndarray, " V"],
    left: Int[np.ndarray, " M"],
    word: Int[np.ndarray, " M"],
) -> tuple[float, Int[np.ndarray, " V"]]:
    """(mean −log p(word | left) at the best λ, the likeliest word after each)."""
    size = len(unigram)
    # Pairs as numbers v·V + w, sorted and counted; special left neighbours ([CLS], [SEP]) never occur among them.
    pairs, counts = np.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    history = np.bincount(tokens[:-1], minlength=size)
    wanted = left * size + word
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[at] == wanted, counts[at], 0)
    losses = [
        -np.mean(np.log((count + strength * unigram[word]) / (history[left] + strength)))
        for strength in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    ]
    best = np.full(size, unigram.argmax())
    order = np.argsort(counts, kind="stable")  # of equal pairs the last assignment, the most frequent, stays
    best[pairs[order] // size] = pairs[order] % size
    return min(losses), best
