"""Rows: which token stands where, that none is lost, and BERT's sentence pairs."""

from pathlib import Path

import numpy as np
import pytest

from bertgpt.config import Vocab
from bertgpt.data.pack import ConcatRows, PackedRows, PairRows, TextRows, best_fit
from bertgpt.data.store import Store

VOCAB = Vocab(size=1000, pad=0, unk=1, cls=2, sep=3, mask=4)
DOCUMENTS = [[[10, 11, 12], [13, 14]], [[20]], [[30, 31, 32, 33, 34, 35, 36, 37], [38, 39]]]


def make_store(documents: list[list[list[int]]]) -> Store:
    tokens = [t for document in documents for sentence in document for t in sentence]
    sentence_ends = np.cumsum([len(sentence) for document in documents for sentence in document])
    return Store(np.array(tokens, np.uint16), sentence_ends, np.cumsum([len(document) for document in documents]))


def random_store(rng: np.random.Generator, documents: int) -> Store:
    """Every token names its place: distinct numbers, ascending."""
    made, number = [], 10
    for _ in range(documents):
        document = []
        for _ in range(rng.integers(1, 9)):
            length = int(rng.integers(1, 15))
            document.append(list(range(number, number + length)))
            number += length
        made.append(document)
    return make_store(made)


def all_rows(rows) -> dict[str, np.ndarray]:
    return rows.gather(np.arange(len(rows)))


def test_concatenated_rows_exactly():
    batch = all_rows(ConcatRows(make_store(DOCUMENTS), VOCAB, 8))
    assert batch["input_ids"].tolist() == [
        [2, 10, 11, 12, 13, 14, 3, 20],
        [2, 3, 30, 31, 32, 33, 34, 35],
        [2, 36, 37, 38, 39, 3, 0, 0],
    ]
    assert batch["segment_ids"].tolist() == [[1] * 8, [1] * 8, [1] * 6 + [0] * 2]
    assert batch["positions"][1].tolist() == list(range(8)) and not batch["type_ids"].any()


def test_packed_rows_exactly():
    rows = PackedRows(make_store(DOCUMENTS), VOCAB, 10)
    batch = all_rows(rows)
    content = {tuple(row) for row in batch["input_ids"].tolist()}
    assert content == {
        (2, 30, 31, 32, 33, 34, 35, 36, 37, 3),  # a document longer than a row goes on in another
        (2, 10, 11, 12, 13, 14, 3, 2, 20, 3),
        (2, 38, 39, 3, 0, 0, 0, 0, 0, 0),
    }
    row = batch["input_ids"].tolist().index([2, 10, 11, 12, 13, 14, 3, 2, 20, 3])
    assert batch["segment_ids"][row].tolist() == [1] * 7 + [2] * 3
    assert batch["positions"][row].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert rows.padding == pytest.approx(6 / 30)


@pytest.mark.parametrize("kind", [ConcatRows, PackedRows])
def test_every_token_appears_exactly_once(kind: type, rng: np.random.Generator):
    store = random_store(rng, 200)
    batch = all_rows(kind(store, VOCAB, 16))
    ids = batch["input_ids"][batch["segment_ids"] > 0]
    np.testing.assert_array_equal(np.sort(ids[ids >= 10]), store.tokens)
    assert (batch["input_ids"][batch["segment_ids"] == 0] == VOCAB.pad).all()


def test_positions_count_from_zero_in_every_segment(rng: np.random.Generator):
    batch = all_rows(PackedRows(random_store(rng, 100), VOCAB, 32))
    for ids, segments, positions in zip(batch["input_ids"], batch["segment_ids"], batch["positions"], strict=True):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
            assert ids[here][0] == VOCAB.cls and ids[here][-1] == VOCAB.sep


def test_best_fit_never_overfills_and_wastes_little(rng: np.random.Generator):
    lengths = rng.integers(3, 129, 5000)
    row = best_fit(lengths, 128)
    filled = np.bincount(row, weights=lengths)
    assert filled.max() <= 128 and filled.mean() / 128 > 0.97
    assert best_fit(np.array([5, 3, 4, 4]), 8).tolist() == [0, 0, 1, 1]


def test_pairs_are_what_their_labels_say(rng: np.random.Generator):
    store = random_store(rng, 300)
    ends = np.asarray(store.sentence_ends)[np.asarray(store.document_ends) - 1]
    rows = PairRows(store, VOCAB, 32, short_seq_prob=0.1, duplicates=3, seed=0, cache=None)
    batch = all_rows(rows)
    document = np.searchsorted(ends, np.arange(ends[-1]), side="right")
    follows = []
    for ids, segments, types, label in zip(
        batch["input_ids"], batch["segment_ids"], batch["type_ids"], batch["pair_label"], strict=True
    ):
        real = ids[segments > 0]
        first, second = (np.flatnonzero(real == VOCAB.sep)).tolist()
        assert real[0] == VOCAB.cls and second == len(real) - 1 and len(real) <= 32
        np.testing.assert_array_equal(types[segments > 0], [0] * (first + 1) + [1] * (second - first))
        a, b = real[1:first] - 10, real[first + 1 : second] - 10
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()  # contiguous text
        # Truncation may eat into both sides of the gap between A and B, but never leaves the document.
        follows.append(document[a[0]] == document[b[0]] and b[0] > a[-1])
        assert label == 0 or document[a[0]] != document[b[0]]
        assert label == 1 or follows[-1]


def test_about_half_of_the_pairs_from_long_documents_are_random(rng: np.random.Generator):
    long = make_store([[[100 + s] * 3 for s in range(200)] for _ in range(30)])
    rows = PairRows(long, VOCAB, 32, short_seq_prob=0.0, duplicates=4, seed=0, cache=None)
    label = all_rows(rows)["pair_label"]
    assert abs(label.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(label))


def test_pairs_are_a_function_of_the_seed_and_cached(rng: np.random.Generator, tmp_path: Path):
    store = random_store(rng, 50)
    made = [PairRows(store, VOCAB, 32, short_seq_prob=0.1, duplicates=2, seed=s, cache=None).pairs for s in (0, 0, 1)]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    for _ in range(2):
        cached = PairRows(store, VOCAB, 32, short_seq_prob=0.1, duplicates=2, seed=0, cache=tmp_path / "pairs.npy")
        np.testing.assert_array_equal(cached.pairs, made[0])
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.npy"]


def test_a_single_document_still_gives_pairs():
    rows = PairRows(
        make_store([[[10, 11], [12], [13, 14]]]), VOCAB, 8, short_seq_prob=0.0, duplicates=5, seed=0, cache=None
    )
    assert set(all_rows(rows)["pair_label"].tolist()) <= {0, 1}


def test_text_rows_are_framed_and_cut():
    rows = TextRows([[10, 11], list(range(10, 30)), []], VOCAB, 6, {"label": np.array([1, 0, 1])})
    batch = rows.gather(np.array([0, 1, 2]))
    assert batch["input_ids"].tolist() == [[2, 10, 11, 3, 0, 0], [2, 10, 11, 12, 13, 3], [2, 3, 0, 0, 0, 0]]
    assert batch["segment_ids"].sum(axis=1).tolist() == [4, 6, 2] and batch["label"].tolist() == [1, 0, 1]
