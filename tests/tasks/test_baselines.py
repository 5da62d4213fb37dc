"""Baselines against slow, obvious computations of the same thing."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.config import Experiment
from bertgpt.data.examples import EncodedTexts, Example, TextDataset
from bertgpt.data.loader import Batches
from bertgpt.data.mixture import MixedDataset
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.tasks.baselines import Majority, NGram, TfidfLogisticRegression
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.source import Loaded
from bertgpt.types import DataRequest, HeldOut, Targets, UserError


def asked(objective, batches, count: int) -> list[Targets]:
    """What an objective asks for in the first batches."""
    made = jax.jit(lambda key, batch: objective.targets(batch, objective.prepare(key, batch)))
    found = [made(jax.random.key(i), batches[i]) for i in range(count)]
    return found


def scores_of(baseline: NGram, train, targets, metric: str) -> dict[str, float]:
    """The metrics of an n-gram model on these targets."""
    data = TextClassification("unused")
    return baseline.fit(data, train)(HeldOut(data, "test", train, targets, metric)).values


@pytest.fixture
def held_out(tiny: Experiment, tokenizer, tmp_path: Path) -> tuple:
    """(training batches, what is asked for in the held-out batches) of the tiny corpus."""
    make = dict(seed=0, batch_size=16, tokenizer=tokenizer, cache=tmp_path)
    train = tiny.data.make(DataRequest(split="train", shuffle=True, **make))
    test = tiny.data.make(DataRequest(split="test", shuffle=False, **make))
    targets = asked(MaskedLM(pair="nsp").make(tokenizer.vocab), test, len(test))
    return train, lambda: iter(targets)


def slow_ngrams(stores: list, size: int, end: int, prepared) -> dict[str, float]:
    """One token at a time, with dictionaries."""
    tokens = []
    for store in stores:
        at = 0
        for sentence in store.document_ends:
            tokens += [int(t) for t in store.tokens[at : store.sentence_ends[sentence - 1]]] + [end]
            at = int(store.sentence_ends[sentence - 1])
    count, pairs = Counter(tokens), Counter(zip(tokens, tokens[1:], strict=False))
    history = Counter(tokens[:-1])
    p = {w: (count[w] + 1) / (len(tokens) + size) for w in range(size)}
    places = [
        (int(batch.left[where]), int(batch.token[where]))
        for batch in prepared()
        for where in np.ndindex(batch.token.shape)
        if batch.weight[where] > 0
    ]
    bigram = min(
        sum(-math.log((pairs[v, w] + s * p[w]) / (history[v] + s)) for v, w in places) / len(places)
        for s in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    )
    best = max(p, key=p.get)
    after = {}  # of words that follow v equally often, the last
    for (v, w), times in pairs.items():
        after[v] = max(after.get(v, (0, 0)), (times, w))
    return {
        "unigram": sum(-math.log(p[w]) for _, w in places) / len(places),
        "unigram accuracy": sum(w == best for _, w in places) / len(places),
        "bigram": bigram,
        "bigram accuracy": sum(w == after.get(v, (0, best))[1] for v, w in places) / len(places),
    }


def test_ngrams_equal_counting_by_hand(held_out: tuple):
    train, prepared = held_out
    expected = slow_ngrams([train.dataset.store], train.dataset.vocab.size, train.dataset.vocab.sep, prepared)
    unigram, bigram = (scores_of(NGram(order), train, prepared, "mlm") for order in (1, 2))
    assert unigram["mlm_loss"] == pytest.approx(expected["unigram"])
    assert unigram["mlm_accuracy"] == pytest.approx(expected["unigram accuracy"])
    assert bigram["mlm_loss"] == pytest.approx(expected["bigram"])
    assert bigram["mlm_loss"] < unigram["mlm_loss"] < math.log(200)
    assert bigram["mlm_accuracy"] == pytest.approx(expected["bigram accuracy"])


def test_causal_models_are_held_against_counts_that_know_where_documents_end(
    tiny: Experiment, tokenizer, tmp_path: Path
):
    data = dataclasses.replace(tiny.data, layout="stream")
    make = dict(seed=0, batch_size=16, tokenizer=tokenizer, cache=tmp_path, shuffle=False)
    train, test = (data.make(DataRequest(split=split, **make)) for split in ("train", "test"))
    targets = asked(CausalLM().make(tokenizer.vocab), test, len(test))
    end = tokenizer.vocab.sep
    assert any(np.any(batch.token[batch.weight > 0] == end) for batch in targets)
    expected = slow_ngrams([train.dataset.store], tokenizer.vocab.size, end, lambda: iter(targets))
    scores = [scores_of(NGram(order), train, lambda: iter(targets), "lm") for order in (1, 2)]
    assert scores[0]["lm_loss"] == pytest.approx(expected["unigram"])
    assert scores[1]["lm_loss"] == pytest.approx(expected["bigram"])
    assert scores[0].keys() == scores[1].keys() == {"lm_loss", "lm_accuracy"}


def test_counts_of_a_mixture_are_those_of_all_its_parts(held_out: tuple, tiny: Experiment, tokenizer, tmp_path: Path):
    train, prepared = held_out
    settings = dict(seed=0, batch_size=16, tokenizer=tokenizer, cache=tmp_path, shuffle=True)
    parts = [tiny.data.make(DataRequest(split=split, **settings)).dataset for split in ("train", "validation")]
    mixed = Batches(MixedDataset(["a", "b"], parts), 1, 0, False)
    expected = slow_ngrams([rows.store for rows in parts], tokenizer.vocab.size, tokenizer.vocab.sep, prepared)
    assert scores_of(NGram(1), mixed, prepared, "mlm")["mlm_loss"] == pytest.approx(expected["unigram"])


def test_an_objective_that_asks_for_no_words_has_no_ngram_baseline(held_out: tuple):
    nothing = Targets(jnp.zeros((2, 3), int), jnp.zeros((2, 3), int), jnp.zeros((2, 3)))
    with pytest.raises(UserError, match="predicts no tokens"):
        scores_of(NGram(1), held_out[0], lambda: iter([nothing]), "mlm")


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
    return TextClassification(str(path), labels=("neg", "pos"), seq_len=16, validation=0.2, test=0.2)


def test_the_majority_class_scores_its_share(reviews: TextClassification, tokenizer):
    make = dict(seed=0, batch_size=8, tokenizer=tokenizer, cache=Path("unused"), shuffle=True)
    train = reviews.make(DataRequest(split="train", **make))
    score = Majority().fit(reviews, train)(HeldOut(reviews, "test", train)).values
    labels = [example.label for example in reviews.examples("test")]
    assert score == {"accuracy": pytest.approx(labels.count(0) / len(labels))}


def test_tfidf_finds_words_that_tell_the_classes_apart(reviews: TextClassification, tokenizer):
    make = dict(seed=0, batch_size=8, tokenizer=tokenizer, cache=Path("unused"), shuffle=True)
    train = reviews.make(DataRequest(split="train", **make))
    assert TfidfLogisticRegression().fit(reviews, train)(HeldOut(reviews, "test", train)).values == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("texts", "labels", "accuracy"),
    [
        (["good film", "bad plot"], [1, 0], 1.0),  # no word occurs twice
        (["good film"], [1], 0.5),  # of a few examples
        (["这部电影很好看", "电影好看", "太差了", "真的很差"], [1, 1, 0, 0], 1.0),
    ],
)
def test_tfidf_is_fitted_to_whatever_the_model_is_trained_on(texts: list[str], labels: list[int], accuracy: float):
    held_out = [("不好看吗好看", 1), ("差", 0)] if texts[0] > "z" else [("a good one", 1), ("bad bad", 0)]

    class Task(TextClassification):
        def load(self, split: str) -> Loaded:
            if split == "validation":
                raise UserError("none")
            return Loaded([Example((text,), label) for text, label in held_out])

    data = Task("unused", labels=("neg", "pos"), seq_len=16)
    examples = [Example((text,), label) for text, label in zip(texts, labels, strict=True)]
    encoded = EncodedTexts([[0]] * len(texts), np.ones(len(texts), int), 0, 0)
    train = Batches(TextDataset(encoded, 8, {}, {}, examples=examples), 1, 0, False)
    score = TfidfLogisticRegression().fit(data, train)(HeldOut(data, "test", train)).values
    assert score == {"accuracy": accuracy}
