"""Rows: which token stands where, and that none is lost."""

import numpy as np
import pytest
from small_stores import DOCUMENTS, GPT, T5, VOCAB, all_rows, make_store, random_store

from bertgpt.data.packing import ConcatDataset, PackedDataset, best_fit
from bertgpt.types import UserError, Vocab


def test_concatenated_sequences_exactly():
    batch = all_rows(ConcatDataset(make_store(DOCUMENTS), VOCAB, 8))
    assert batch["input_ids"].tolist() == [
        [2, 10, 11, 12, 13, 14, 3, 20],
        [2, 3, 30, 31, 32, 33, 34, 35],
        [2, 36, 37, 38, 39, 3, 0, 0],
    ]
    assert batch["segment_ids"].tolist() == [[1] * 8, [1] * 8, [1] * 6 + [0] * 2]
    assert batch["positions"][1].tolist() == list(range(8)) and not batch["type_ids"].any()


def test_packed_sequences_exactly():
    rows = PackedDataset(make_store(DOCUMENTS), VOCAB, 10)
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


@pytest.mark.parametrize("kind", [ConcatDataset, PackedDataset])
def test_every_token_appears_exactly_once(kind: type, rng: np.random.Generator):
    store = random_store(rng, 200)
    batch = all_rows(kind(store, VOCAB, 16))
    ids = batch["input_ids"][batch["segment_ids"] > 0]
    np.testing.assert_array_equal(np.sort(ids[ids >= 10]), store.tokens)
    assert (batch["input_ids"][batch["segment_ids"] == 0] == VOCAB.pad).all()


def test_positions_count_from_zero_in_every_segment(rng: np.random.Generator):
    batch = all_rows(PackedDataset(random_store(rng, 100), VOCAB, 32))
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


@pytest.mark.parametrize("kind", [ConcatDataset, PackedDataset])
@pytest.mark.parametrize("seq_len", [8, 16, 33])
def test_padding_is_the_fraction_of_places_that_hold_nothing(kind: type, seq_len: int, rng: np.random.Generator):
    rows = kind(random_store(rng, 50), VOCAB, seq_len)
    assert rows.padding == pytest.approx((all_rows(rows)["segment_ids"] == 0).mean())


def test_sequences_gathered_together_equal_those_gathered_one_by_one(rng: np.random.Generator):
    for kind in (ConcatDataset, PackedDataset):
        rows = kind(random_store(rng, 50), VOCAB, 16)
        every = all_rows(rows)
        chosen = rng.integers(0, len(rows), 20)
        for name, array in rows.gather(chosen).items():
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, every[name][chosen])


@pytest.mark.parametrize("vocab, before, after, pad", [(GPT, [9], [9], 9), (T5, [], [1], 0)])
def test_the_template_of_a_decoder_is_bos_and_eos(vocab: Vocab, before: list, after: list, pad: int):
    packed = all_rows(PackedDataset(make_store([[[20, 21]], [[30]]]), vocab, 9))
    both = before + [20, 21] + after + before + [30] + after
    assert packed["input_ids"].tolist() == [both + [pad] * (9 - len(both))]
    lengths = len(before) + 3, len(before) + 2
    assert packed["segment_ids"].tolist() == [[1] * lengths[0] + [2] * lengths[1] + [0] * (9 - len(both))]


@pytest.mark.parametrize(
    "vocab, missing",
    [(Vocab(10, pad=0), "cls"), (Vocab(10, pad=0, cls=1), "sep"), (Vocab(10, cls=1, sep=2), "pad")],
)
def test_a_tokenizer_without_the_tokens_of_the_template_is_refused_by_name(vocab: Vocab, missing: str):
    with pytest.raises(UserError, match=f"a sequence of .CLS. text .SEP. needs a {missing} token"):
        PackedDataset(make_store(DOCUMENTS), vocab, 8)
