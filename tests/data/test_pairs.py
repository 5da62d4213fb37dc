"""Sentence pairs: BERT's next sentence or another, ALBERT's order."""

from pathlib import Path

import numpy as np
import pytest
from small_stores import GPT, VOCAB, all_rows, make_store, random_store

from bertgpt.data.pairs import PairDataset
from bertgpt.data.store import Store
from bertgpt.types import UserError


def test_pairs_are_what_their_labels_say(rng: np.random.Generator):
    store = random_store(rng, 300)
    ends = np.asarray(store.sentence_ends)[np.asarray(store.document_ends) - 1]
    rows = PairDataset(store, VOCAB, 32, short_seq_prob=0.1, duplicates=3, seed=0)
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
    rows = PairDataset(long, VOCAB, 32, short_seq_prob=0.0, duplicates=4, seed=0)
    label = all_rows(rows)["pair_label"]
    assert abs(label.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(label))


def test_pairs_are_a_function_of_the_seed_and_cached(rng: np.random.Generator, tmp_path: Path):
    store = random_store(rng, 50)
    made = [PairDataset(store, VOCAB, 32, short_seq_prob=0.1, duplicates=2, seed=s).pairs for s in (0, 0, 1)]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    for _ in range(2):
        cached = PairDataset(store, VOCAB, 32, short_seq_prob=0.1, duplicates=2, seed=0, cache=[tmp_path / "pairs.npy"])
        np.testing.assert_array_equal(cached.pairs, made[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs.json", "pairs.npy"]


def next_sentences(documents: list[list[list[int]]], **settings) -> PairDataset:
    return PairDataset(
        make_store(documents), VOCAB, 8, **{"short_seq_prob": 0.0, "duplicates": 5, "seed": 0} | settings
    )


def test_a_single_document_has_no_text_of_another_for_next_sentence_pairs():
    with pytest.raises(UserError, match="next-sentence pairs need two documents or more, and the split has one"):
        next_sentences([[[10, 11], [12], [13, 14]]])


def test_labels_that_documents_of_one_sentence_unbalance_are_counted_and_can_be_balanced():
    alone, long = [[[10, 11]]] * 40, [[[20 + n] for n in range(40)]] * 3
    assert all_rows(next_sentences(alone))["pair_label"].tolist() == [1] * 200
    (warning,) = next_sentences(alone).warnings
    assert (warning.kind, warning.count) == ("unbalanced", 200)
    assert warning.text.startswith("200 of 200 next-sentence pairs have a random second text (label 1)")
    drawn, kept = (all_rows(next_sentences(alone + long, balance=balance)) for balance in (False, True))
    following = (drawn["pair_label"] == 0).sum()
    assert following > 20 and drawn["pair_label"].mean() > 0.6
    assert (kept["pair_label"] == 0).sum() == (kept["pair_label"] == 1).sum() == following
    (warning,) = next_sentences(alone + long, balance=True).warnings
    assert (warning.kind, warning.count) == ("skipped", len(drawn["pair_label"]) - 2 * following)
    with pytest.raises(UserError, match="no document has two sentences"):
        next_sentences(alone, balance=True)
    assert next_sentences(long).warnings == ()


@pytest.mark.parametrize("name", ["pairs.npy", "pairs.json"])
def test_damaged_files_of_pairs_are_drawn_again(name: str, tmp_path: Path, rng: np.random.Generator):
    store, file = random_store(rng, 50), tmp_path / name

    def pairs() -> np.ndarray:
        cache = (tmp_path / "missing" / "pairs.npy", tmp_path / "pairs.npy")  # the first folder cannot be written
        return PairDataset(store, VOCAB, 32, short_seq_prob=0.1, duplicates=1, seed=0, cache=cache).pairs

    expected = np.array(pairs())
    good = file.read_bytes()
    for damage in ("empty", "half", "missing", *range(20)):
        bits = bytearray(good)
        if isinstance(damage, int):
            bits[rng.integers(len(bits))] ^= 1 << int(rng.integers(8))
        file.write_bytes({"empty": b"", "half": good[: len(good) // 2]}.get(damage, bits))
        if damage == "missing":
            file.unlink()
        np.testing.assert_array_equal(pairs(), expected)
        assert file.read_bytes() == good


def swapped(store: Store, seq_len: int = 32, **settings) -> PairDataset:
    return PairDataset(
        store, VOCAB, seq_len, **{"short_seq_prob": 0.1, "duplicates": 3, "seed": 0, "swapped": True} | settings
    )


def test_swapped_pairs_are_two_consecutive_segments_of_one_document(rng: np.random.Generator):
    store = random_store(rng, 300)
    rows = swapped(store)
    ends = np.asarray(store.sentence_ends)[np.asarray(store.document_ends) - 1]
    a_start, a_len, b_start, b_len, label = rows.pairs.T
    assert (a_len > 0).all() and (b_len > 0).all() and (a_len + b_len <= 29).all()
    np.testing.assert_array_equal(np.searchsorted(ends, a_start, "right"), np.searchsorted(ends, b_start, "right"))
    first, second = np.where(label, b_start, a_start), np.where(label, a_start, b_start)
    first_len = np.where(label, b_len, a_len)
    assert (first + first_len <= second).all()
    whole = a_len + b_len < 29  # not cut: B begins where A ends, both at ends of sentences
    assert whole.sum() > 100 and (first + first_len == second)[whole].all()
    assert np.isin((first + first_len)[whole], store.sentence_ends).all()
    batch = all_rows(rows)
    np.testing.assert_array_equal(batch["pair_label"], label)
    np.testing.assert_array_equal(batch["input_ids"][:, 1], store.tokens[a_start])  # A as the label says
    np.testing.assert_array_equal(batch["type_ids"].sum(axis=1), b_len + 1)
    assert batch["segment_ids"].max() == 1


def test_half_of_the_pairs_change_places():
    rows = swapped(make_store([[[100 + s] * 3 for s in range(200)] for _ in range(30)]))
    label = all_rows(rows)["pair_label"]
    assert len(label) > 1000 and abs(label.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(label))


def test_every_sentence_of_a_document_of_two_or_more_is_in_a_pair(rng: np.random.Generator):
    store = make_store([[[10 + d * 7 + s] for s in range(d % 7 + 1)] for d in range(100)])
    batch = all_rows(swapped(store, 8, duplicates=1, short_seq_prob=0.0))
    alone = {10 + d * 7 for d in range(0, 100, 7)}
    seen = set(batch["input_ids"][batch["segment_ids"] > 0].tolist()) - set(VOCAB.special)
    assert seen == set(store.tokens.tolist()) - alone
    assert [(w.kind, w.count) for w in swapped(store, 8).warnings] == [("skipped", len(alone))]
    store = random_store(rng, 100)
    pairs = swapped(store, 4000, duplicates=1, short_seq_prob=0.0).pairs.tolist()
    seen = np.zeros(len(store.tokens), int)
    for a_start, a_len, b_start, b_len, _ in pairs:
        seen[a_start : a_start + a_len] += 1
        seen[b_start : b_start + b_len] += 1
    sentences = np.diff(store.document_ends, prepend=0)
    lengths = np.diff(np.asarray(store.sentence_ends)[np.asarray(store.document_ends) - 1], prepend=0)
    np.testing.assert_array_equal(seen, np.repeat(sentences > 1, lengths))


def test_short_pairs_come_from_as_many_documents_as_asked_for():
    store = make_store([[[10] * 5] * 6] * 2000)  # pairs of 30 tokens, unless the target is below 26
    rows = swapped(store, 33, duplicates=1, short_seq_prob=0.3)
    short = (rows.pairs[:, 1] + rows.pairs[:, 3] < 30).sum()
    full = (rows.pairs[:, 1] + rows.pairs[:, 3] == 30).sum()
    share = full / 2000  # a target of 2 … 30 is drawn with chance .3, and 5 of the 29 still take the whole document
    assert short > 0 and abs(share - (0.7 + 0.3 * 5 / 29)) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_documents_of_one_sentence_give_no_swapped_pairs():
    with pytest.raises(UserError, match="zero sentence pairs: every document of the split is a single sentence"):
        swapped(make_store([[[10, 11]], [[12]]]))


@pytest.mark.parametrize("swap", [False, True])
def test_padding_of_pairs_is_the_fraction_of_places_that_hold_nothing(swap: bool, rng: np.random.Generator):
    rows = swapped(random_store(rng, 40), swapped=swap)
    assert rows.padding == pytest.approx((all_rows(rows)["segment_ids"] == 0).mean())


def test_pairs_need_a_separator():
    with pytest.raises(UserError, match="a sequence of .CLS. text .SEP. needs a cls token"):
        PairDataset(make_store([[[10], [11]]]), GPT, 8, short_seq_prob=0.1, duplicates=1, seed=0)
