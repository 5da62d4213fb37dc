"""Predictors without a network, scored on exactly the held-out examples or tokens that the model is scored on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.examples import Example, PackedTextDataset, TextDataset
from bertgpt.data.loader import Batches
from bertgpt.data.sources.text import CJK
from bertgpt.ranges import Range, check_fields
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.source import data_of, need
from bertgpt.types import DataConfig, EvalResult, HeldOut, Metric, TokenSource, UserError

# Words of two letters or more, which is scikit-learn's own rule; each Chinese or Japanese character is a word.
WORD = rf"[{CJK}]|[^\W{CJK}]{{2,}}"


def training_examples(train: Batches) -> Sequence[Example]:
    """The examples of batches of texts. Raises UserError if they hold something else."""
    if not isinstance(train.dataset, TextDataset | PackedTextDataset):
        raise UserError("this baseline is for labelled texts: remove it, or use data of TextClassification")
    return train.dataset.examples


def accuracy(right: float) -> EvalResult:
    """The result of a baseline that is right for this fraction of the examples."""
    return EvalResult((Metric("accuracy", float(right), True),))


@dataclasses.dataclass(frozen=True)
class Majority:
    """Predicts the most frequent training label."""

    name: str = "majority class"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Counts the training labels; returns a function that scores the accuracy on held-out texts."""
        del data
        most = np.bincount([example.label for example in training_examples(train)]).argmax()

        def predict(held_out: HeldOut) -> EvalResult:
            examples = data_of(held_out, TextClassification).examples(held_out.split)
            return accuracy(np.mean([example.label == most for example in examples]))

        return predict


@dataclasses.dataclass(frozen=True)
class TfidfLogisticRegression:
    """Logistic regression on TF-IDF weighted words and word pairs (scikit-learn), fitted to the same training texts.

    Chinese and Japanese characters are words.
    """

    name: str = "TF-IDF + logistic regression"
    """name in tables"""

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Fits a small grid of regularisations; returns a function that scores the accuracy on held-out texts.

        The regularisation that is best on the validation split is used.

        Raises:
          UserError: scikit-learn is missing, or the training texts have no words.
        """
        del data
        linear = need("sklearn.linear_model", "scikit-learn")
        examples = training_examples(train)
        labels = [example.label for example in examples]
        if len(set(labels)) < 2:  # few examples may have only one label
            return lambda held_out: accuracy(np.mean([example.label == labels[0] for example in held_out_of(held_out)]))
        vectorizer, features = tf_idf(texts_of(examples))
        fits = [linear.LogisticRegression(C=c, max_iter=1000).fit(features, labels) for c in (1.0, 3.0, 10.0, 30.0)]

        def score(fit: Any, examples: Sequence[Example]) -> float:
            return fit.score(vectorizer.transform(texts_of(examples)), [example.label for example in examples])

        def predict(held_out: HeldOut) -> EvalResult:
            try:
                known = data_of(held_out, TextClassification).examples("validation")
            except UserError:  # there is no validation split
                best = fits[0]
            else:
                best = max(fits, key=lambda fit: score(fit, known))
            return accuracy(score(best, held_out_of(held_out)))

        return predict


def held_out_of(held_out: HeldOut) -> Sequence[Example]:
    """The held-out texts with their labels."""
    return data_of(held_out, TextClassification).examples(held_out.split)


def texts_of(examples: Sequence[Example]) -> list[str]:
    """Each example as one text."""
    return ["\n".join(example.texts) for example in examples]


def tf_idf(texts: Sequence[str]) -> tuple[Any, Any]:
    """(a vectorizer fitted to the texts, their features), of words and pairs that occur in two texts if any do."""
    text = need("sklearn.feature_extraction.text", "scikit-learn")
    for least in (2, 1):
        vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), min_df=least, sublinear_tf=True, token_pattern=WORD)
        try:
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError:  # no such word
            continue
    raise UserError("TF-IDF: the training texts have no words")


@dataclasses.dataclass(frozen=True)
class NGram:
    """Cross-entropy of an n-gram model on the tokens that the objective predicts.

    order 1: p(w) = (c(w) + 1) / (N + V).
    order 2: p(w | v) = (c(v, w) + λ p(w)) / (c(v) + λ), v the token to the left *before* corruption: the baseline sees
      a token that may be masked for the model. λ is the best of a grid on the scored data itself. Both choices favour
      the baseline.

    Counts are those of the training text with the token that ends each document, which causal models predict too.
    """

    order: Annotated[int, Range(1, 2)]
    """1: unigram, 2: bigram"""

    def __post_init__(self):
        if self.order not in (1, 2):
            raise UserError(f"NGram: order={self.order} must be 1 or 2")
        check_fields(self)

    @property
    def name(self) -> str:
        """Name in tables."""
        return {1: "unigram", 2: "bigram"}[self.order]

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Counts the training tokens; returns a function with the mean −log p, in nats, and accuracy per token.

        Raises:
          UserError: the data has no token text, or the objective predicts no tokens.
        """
        if not isinstance(train.dataset, TokenSource):
            raise UserError(f"NGram: data of {type(data).__name__} has no token text; remove the baseline")
        tokens, vocab_size = train.dataset.training_tokens()
        unigram = (np.bincount(tokens, minlength=vocab_size) + 1.0) / (len(tokens) + vocab_size)

        def predict(held_out: HeldOut) -> EvalResult:
            left, token = target_tokens(held_out)
            if self.order == 1:
                loss, best = -np.mean(np.log(unigram[token])), np.full(vocab_size, unigram.argmax())
            else:
                loss, best = bigram(tokens, unigram, left, token)
            name = held_out.target_metric
            right = float(np.mean(best[left] == token))
            return EvalResult((Metric(f"{name}_loss", float(loss), False), Metric(f"{name}_accuracy", right, True)))

        return predict


def target_tokens(held_out: HeldOut) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """(token to the left, token) of every token that the objective predicts.

    Raises:
      UserError: it predicts none.
    """
    pairs = [np.zeros((2, 0), np.int64)]
    for batch in held_out.targets() if held_out.targets is not None else ():
        predicted = batch.weight > 0
        pairs.append(np.stack([batch.left[predicted], batch.token[predicted]]).astype(np.int64))
    left, token = np.concatenate(pairs, axis=1)
    if not len(token):
        raise UserError("NGram: the objective predicts no tokens on this split; remove the baseline")
    return left, token


def bigram(
    tokens: Int[np.ndarray, " N"],
    unigram: Float[np.ndarray, " V"],
    left: Int[np.ndarray, " M"],
    token: Int[np.ndarray, " M"],
) -> tuple[float, Int[np.ndarray, " V"]]:
    """(mean −log p(token | left) at the best λ, the most probable token after each token)."""
    size = len(unigram)
    # Pairs as numbers v·V + w, sorted and counted; left neighbours [CLS] and [SEP] never occur among them.
    pairs, counts = np.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    history = np.bincount(tokens[:-1], minlength=size)
    wanted = left * size + token
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[at] == wanted, counts[at], 0)
    losses = [
        -np.mean(np.log((count + strength * unigram[token]) / (history[left] + strength)))
        for strength in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    ]
    best = np.full(size, unigram.argmax())
    order = np.argsort(counts, kind="stable")  # the last assignment, of the most frequent pair, remains
    best[pairs[order] // size] = pairs[order] % size
    return min(losses), best
