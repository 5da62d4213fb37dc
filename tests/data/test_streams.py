"""Rows that follow the running text, against the text itself."""

import numpy as np
import pytest
from small_stores import DOCUMENTS, GPT, T5, VOCAB, all_rows, make_store, random_store

from bertgpt.data.store import Store
from bertgpt.data.streams import SentenceDataset, StreamDataset, TokenDataset
from bertgpt.types import UserError, Vocab


def documents_of(store: Store) -> list[list[list[int]]]:
    """The store as documents of sentences of tokens."""
    sentences = [s.tolist() for s in np.split(store.tokens, store.sentence_ends)[:-1]]
    bounds = [0, *store.document_ends]
    return [sentences[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def stream_of(store: Store, end: int) -> list[int]:
    return [t for document in documents_of(store) for sentence in [*document, [end]] for t in sentence]


def test_stream_sequences_exactly():
    batch = all_rows(StreamDataset(make_store(DOCUMENTS), GPT, 8, apart=False))
    assert batch["input_ids"].tolist() == [
        [10, 11, 12, 13, 14, 9, 20, 9],
        [9, 30, 31, 32, 33, 34, 35, 36],  # begins with the token that the row before ends with
        [36, 37, 38, 39, 9, 9, 9, 9],  # a tokenizer without a pad token: eos, which segment 0 tells from the text
    ]
    assert batch["segment_ids"].tolist() == [[1] * 8, [1] * 8, [1] * 5 + [0] * 3]
    assert batch["positions"].tolist() == [list(range(8)), list(range(8)), [0, 1, 2, 3, 4, 0, 0, 0]]


def test_stream_sequences_of_separate_documents_exactly():
    batch = all_rows(StreamDataset(make_store(DOCUMENTS), GPT, 8, apart=True))
    assert (
        batch["input_ids"].tolist()
        == all_rows(StreamDataset(make_store(DOCUMENTS), GPT, 8, False))["input_ids"].tolist()
    )
    assert batch["segment_ids"].tolist() == [
        [1, 1, 1, 1, 1, 1, 2, 2],  # a document's eos belongs to it
        [1, 2, 2, 2, 2, 2, 2, 2],
        [1, 1, 1, 1, 1, 0, 0, 0],
    ]
    assert batch["positions"].tolist() == [
        [0, 1, 2, 3, 4, 5, 0, 1],
        [0, 0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 0, 0, 0],
    ]


@pytest.mark.parametrize("seq_len", [8, 9, 16, 100])
@pytest.mark.parametrize("apart", [False, True])
def test_next_token_prediction_within_sequences_covers_every_token_of_the_stream_once(
    seq_len: int, apart: bool, rng: np.random.Generator
):
    store = random_store(rng, 60)
    batch = all_rows(StreamDataset(store, GPT, seq_len, apart))
    asked = batch["segment_ids"][:, 1:] > 0
    if apart:
        asked &= batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    # Apart, the first token of a document is asked for by none.
    expected = (
        [s for d in documents_of(store) for s in [t for x in [*d, [9]] for t in x][1:]]
        if apart
        else stream_of(store, 9)[1:]
    )
    assert batch["input_ids"][:, 1:][asked].tolist() == expected


def test_a_stream_that_ends_with_a_row_has_no_row_of_nothing():
    # 14 tokens and eos are two rows of 8 that share one; a third would hold the last token alone and ask for nothing.
    rows = StreamDataset(make_store([[list(range(10, 24))]]), GPT, 8, apart=False)
    assert len(rows) == 2 and rows.padding == 0.0
    assert all_rows(rows)["input_ids"].tolist() == [list(range(10, 18)), [*range(17, 24), 9]]


def test_a_tokenizer_without_eos_ends_documents_with_sep():
    assert all_rows(StreamDataset(make_store([[[10, 11]], [[12]]]), VOCAB, 8, True))["input_ids"].tolist() == [
        [10, 11, 3, 12, 3, 0, 0, 0]
    ]
    with pytest.raises(UserError, match="a stream of documents needs a eos token"):
        StreamDataset(make_store(DOCUMENTS), Vocab(10, pad=0), 8, apart=False)


def test_token_sequences_exactly():
    store = make_store(DOCUMENTS)  # 16 tokens
    whole = all_rows(TokenDataset(store, T5, 8, keep_last=False))
    assert whole["input_ids"].tolist() == [[10, 11, 12, 13, 14, 20, 30, 31], [32, 33, 34, 35, 36, 37, 38, 39]]
    assert (whole["segment_ids"] == 1).all() and whole["positions"].tolist() == [list(range(8))] * 2
    assert all_rows(TokenDataset(store, T5, 10, keep_last=False))["input_ids"].tolist() == [[*store.tokens[:10]]]
    kept = all_rows(TokenDataset(store, T5, 10, keep_last=True))
    assert kept["input_ids"].tolist() == [[*store.tokens[:10]], [*store.tokens[10:], 0, 0, 0, 0]]
    assert kept["segment_ids"][1].tolist() == [1] * 6 + [0] * 4
    assert (
        len(TokenDataset(store, T5, 17, keep_last=False)) == 0 and len(TokenDataset(store, T5, 16, keep_last=True)) == 1
    )
    assert not TokenDataset(store, T5, 8, keep_last=False).warnings
    assert not TokenDataset(store, T5, 10, keep_last=True).warnings
    [warning] = TokenDataset(store, T5, 10, keep_last=False).warnings
    assert (warning.kind, warning.count) == ("skipped", 6) and warning.text.startswith("6 of 16 tokens at the end")
    with pytest.raises(UserError, match="a sequence of tokens needs a pad token"):
        TokenDataset(store, Vocab(10, cls=1, sep=2), 8, keep_last=True)


def slow_sentence_rows(store: Store, vocab: Vocab, seq_len: int, cross: bool) -> list[list[int]]:
    """One sentence at a time, as the paper tells it."""
    start = [vocab.bos] if vocab.cls is None else [vocab.cls]
    end = vocab.eos if vocab.sep is None else vocab.sep
    start = [] if start == [None] else start
    room = seq_len - len(start) - 1
    rows, row = [], []
    for document in documents_of(store):
        sentences = [s[i : i + room] for s in document for i in range(0, len(s), room)]
        for n, sentence in enumerate(sentences):
            between = [end] if row and n == 0 else []
            if len(row) + len(between) + len(sentence) > room:
                rows.append(start + row + [end])
                row, between = [], []
            row = row + between + sentence
        if not cross:
            rows.append(start + row + [end])
            row = []
    return rows + ([start + row + [end]] if row else [])


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("vocab", [VOCAB, GPT, T5], ids=["bert", "gpt", "t5"])
@pytest.mark.parametrize("seq_len", [8, 16, 40])
def test_sentence_sequences_equal_filling_them_one_sentence_at_a_time(
    cross: bool, vocab: Vocab, seq_len: int, rng: np.random.Generator
):
    store = random_store(rng, 80)
    rows = SentenceDataset(store, vocab, seq_len, cross)
    batch, expected = all_rows(rows), slow_sentence_rows(store, vocab, seq_len, cross)
    assert [ids[s > 0].tolist() for ids, s in zip(batch["input_ids"], batch["segment_ids"], strict=True)] == expected
    assert batch["segment_ids"].max() == 1
    np.testing.assert_array_equal(batch["positions"], np.arange(seq_len) * batch["segment_ids"])


def test_full_sentences_cross_documents_and_document_sentences_do_not():
    store = make_store([[[10, 11], [12]], [[20, 21, 22]], [[30], list(range(31, 41))]])
    assert all_rows(SentenceDataset(store, VOCAB, 10, True))["input_ids"].tolist() == [
        [2, 10, 11, 12, 3, 20, 21, 22, 3, 0],  # [30] and the [SEP] that it would need do not fit
        [2, 30, 3, 0, 0, 0, 0, 0, 0, 0],
        [2, 31, 32, 33, 34, 35, 36, 37, 38, 3],  # longer than a row: cut
        [2, 39, 40, 3, 0, 0, 0, 0, 0, 0],
    ]
    assert all_rows(SentenceDataset(store, VOCAB, 10, False))["input_ids"][:, :6].tolist() == [
        [2, 10, 11, 12, 3, 0],
        [2, 20, 21, 22, 3, 0],
        [2, 30, 3, 0, 0, 0],
        [2, 31, 32, 33, 34, 35],
        [2, 39, 40, 3, 0, 0],
    ]


@pytest.mark.parametrize(
    "kind, settings",
    [(StreamDataset, {"apart": a}) for a in (False, True)]
    + [(TokenDataset, {"keep_last": k}) for k in (False, True)]
    + [(SentenceDataset, {"cross_documents": c}) for c in (False, True)],
)
def test_padding_and_any_order_of_sequences(kind: type, settings: dict, rng: np.random.Generator):
    for seq_len in (8, 16, 33):
        rows = kind(random_store(rng, 50), VOCAB, seq_len, **settings)
        every = all_rows(rows)
        assert rows.padding == pytest.approx((every["segment_ids"] == 0).mean())
        chosen = rng.integers(0, len(rows), 20)
        for name, array in rows.gather(chosen).items():
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, every[name][chosen])
