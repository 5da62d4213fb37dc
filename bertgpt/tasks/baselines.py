"""What a model must beat: predictors without a network, scored on exactly the held-out data the model is scored on."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bertgpt.config import UserError

# Yields (raw batch, batch as the objective prepared it) over a held-out split.
Prepared = Callable[[], Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]]


@dataclasses.dataclass(frozen=True)
class Majority:
    """Always the most frequent training label."""

    name: str = "majority class"
    """name in tables"""

    def score(self, data: Any, train: Any, split: str, prepared: Prepared) -> dict[str, float]:
        """Accuracy on a split of a classification task."""
        del prepared
        labels = np.asarray(data.examples(split)[1])
        return {"accuracy": float(np.mean(labels == np.bincount(train.rows.extra["label"]).argmax()))}


@dataclasses.dataclass(frozen=True)
class TfidfLogisticRegression:
    """Logistic regression on TF-IDF weighted words and word pairs (scikit-learn), fitted to the same training texts."""

    name: str = "TF-IDF + logistic regression"
    """name in tables"""

    def score(self, data: Any, train: Any, split: str, prepared: Prepared) -> dict[str, float]:
        """Accuracy on a split; the regularisation is the best of a small grid on the validation split."""
        del prepared, train
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise UserError("the TF-IDF baseline needs scikit-learn: pip install 'bertgpt[demo]'") from None
        (texts, labels), (held_out, truth) = data.examples("train"), data.examples("validation")
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform(texts)
        fits = [LogisticRegression(C=c, max_iter=1000).fit(features, labels) for c in (1.0, 3.0, 10.0, 30.0)]
        best = max(fits, key=lambda fit: fit.score(vectorizer.transform(held_out), truth))
        texts, labels = data.examples(split)
        return {"accuracy": float(best.score(vectorizer.transform(texts), labels))}


@dataclasses.dataclass(frozen=True)
class NGram:
    """Cross-entropy of a count model at the very positions the masked language model predicts, in the same tokens.

    order 1: p(w) = (c(w) + 1) / (N + V).
    order 2: p(w | v) = (c(v, w) + λ p(w)) / (c(v) + λ), v the left neighbour *before* masking: it sees a token that the
      model may see masked. λ is the best of a grid on the scored data itself. Both choices favour the baseline.
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
        """Mean −log p, in nats, and accuracy of the likeliest word, per predicted token."""
        del data, split
        vocab_size, tokens = train.rows.vocab.size, np.asarray(train.rows.store.tokens).astype(np.int64)
        left, word = np.concatenate([[*scored_positions(*pair)] for pair in prepared()], axis=1)
        unigram = (np.bincount(tokens, minlength=vocab_size) + 1.0) / (len(tokens) + vocab_size)
        if self.order == 1:
            return {
                "mlm_loss": float(-np.mean(np.log(unigram[word]))),
                "mlm_accuracy": float(np.mean(word == unigram.argmax())),
            }
        # Pairs as numbers v·V + w, sorted and counted; special left neighbours ([CLS], [SEP]) never occur among them.
        pairs, counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
        history = np.bincount(tokens[:-1], minlength=vocab_size)
        wanted = left * vocab_size + word
        at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        count = np.where(pairs[at] == wanted, counts[at], 0)
        losses = [
            -np.mean(np.log((count + strength * unigram[word]) / (history[left] + strength)))
            for strength in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
        ]
        best = np.full(vocab_size, unigram.argmax())
        order = np.argsort(counts, kind="stable")  # of equal pairs the last assignment, the most frequent, stays
        best[pairs[order] // vocab_size] = pairs[order] % vocab_size
        return {"mlm_loss": float(min(losses)), "mlm_accuracy": float(np.mean(best[left] == word))}


def scored_positions(raw: dict[str, np.ndarray], prepared: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(left neighbour before masking, word) at every predicted position of a batch."""
    row, slot = np.nonzero(prepared["mlm_weights"] > 0)
    position = prepared["mlm_positions"][row, slot]
    return raw["input_ids"][row, np.maximum(position - 1, 0)].astype(np.int64), prepared["mlm_labels"][
        row, slot
    ].astype(np.int64)
