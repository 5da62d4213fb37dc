"""Baselines against slow, obvious computations of the same thing."""

import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from bertgpt.config import Experiment, UserError
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.tasks.baselines import Majority, NGram, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification


@pytest.fixture
def held_out(tiny: Experiment, tokenizer, tmp_path: Path) -> tuple:
    """(training batches, raw and prepared held-out batches) of the tiny corpus."""
    make = dict(seed=0, batch_size=16, tokenizer=tokenizer, cache=tmp_path)
    train = tiny.data.make(split="train", shuffle=True, **make)
    test = tiny.data.make(split="test", shuffle=False, **make)
    prepare = jax.jit(MaskedLM(pair="nsp").make(tokenizer.vocab).prepare)
    pairs = [(test[i], jax.device_get(prepare(jax.random.key(i), test[i]))) for i in range(len(test))]
    return train, lambda: iter(pairs)


def slow_ngrams(train, prepared) -> dict[str, float]:
    """One token at a time, with dictionaries."""
    tokens = [int(t) for t in train.rows.store.tokens]
    size = train.rows.vocab.size
    count, pairs = Counter(tokens), Counter(zip(tokens, tokens[1:], strict=False))
    history = Counter(tokens[:-1])
    p = {w: (count[w] + 1) / (len(tokens) + size) for w in range(size)}
    places = [
        (int(raw["input_ids"][b, max(at - 1, 0)]), int(done["mlm_labels"][b, m]))
        for raw, done in prepared()
        for b in range(len(raw["input_ids"]))
        for m, at in enumerate(done["mlm_positions"][b])
        if done["mlm_weights"][b, m] > 0
    ]
    bigram = min(
        sum(-math.log((pairs[v, w] + s * p[w]) / (history[v] + s)) for v, w in places) / len(places)
        for s in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    )
    best = max(p, key=p.get)
    return {
        "unigram": sum(-math.log(p[w]) for _, w in places) / len(places),
        "unigram accuracy": sum(w == best for _, w in places) / len(places),
        "bigram": bigram,
    }


def test_ngrams_equal_counting_by_hand(held_out: tuple):
    train, prepared = held_out
    expected = slow_ngrams(train, prepared)
    unigram, bigram = (NGram(order).score(None, train, "test", prepared) for order in (1, 2))
    assert unigram["mlm_loss"] == pytest.approx(expected["unigram"])
    assert unigram["mlm_accuracy"] == pytest.approx(expected["unigram accuracy"])
    assert bigram["mlm_loss"] == pytest.approx(expected["bigram"])
    assert bigram["mlm_loss"] < unigram["mlm_loss"] < math.log(200)
    assert bigram["mlm_accuracy"] > unigram["mlm_accuracy"]


def test_only_two_orders_exist():
    with pytest.raises(UserError, match="order=3 must be 1 or 2"):
        NGram(3)


@pytest.fixture
def reviews(tmp_path: Path, rng: np.random.Generator) -> TextClassification:
    words = {"neg": ["awful", "dull", "poor"], "pos": ["great", "fine", "superb"]}
    lines = []
    for i in range(300):
        label = "neg" if rng.random() < 0.6 else "pos"
        lines.append(f"film {rng.choice(words[label])} {rng.choice(['plot', 'cast'])} {i}\t{label}")
    path = tmp_path / "reviews.tsv"
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return TextClassification(str(path), ("neg", "pos"), seq_len=16, validation=0.2, test=0.2)


def test_the_majority_class_scores_its_share(reviews: TextClassification, tokenizer):
    make = dict(seed=0, batch_size=8, tokenizer=tokenizer, cache=Path("unused"), shuffle=True)
    score = Majority().score(reviews, reviews.make(split="train", **make), "test", lambda: iter(()))
    labels = reviews.examples("test")[1]
    assert score == {"accuracy": pytest.approx(labels.count(0) / len(labels))}


def test_tfidf_finds_words_that_tell_the_classes_apart(reviews: TextClassification):
    assert TfidfLogisticRegression().score(reviews, None, "test", lambda: iter(())) == {"accuracy": 1.0}
