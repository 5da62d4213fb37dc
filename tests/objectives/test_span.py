"""Span corruption against a transcription of T5's recipe, and its distributions."""

import dataclasses
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.objectives.span import SpanCorruption
from bertgpt.types import UserError, Vocab

SENTINELS = tuple(range(999, 899, -1))
VOCAB = Vocab(size=1000, pad=0, eos=1, unk=2, sentinels=SENTINELS)


def batch_of(documents: list[list[list[int]]], length: int) -> dict[str, jax.Array]:
    """A batch: each row holds these documents side by side."""
    batch = {
        name: np.zeros((len(documents), length), np.int32)
        for name in ("input_ids", "segment_ids", "positions", "type_ids")
    }
    for r, row in enumerate(documents):
        at = 0
        for segment, document in enumerate(row, start=1):
            here = slice(at, at + len(document))
            batch["input_ids"][r, here], batch["segment_ids"][r, here] = document, segment
            batch["positions"][r, here] = np.arange(len(document))
            at += len(document)
    return {name: jnp.asarray(array) for name, array in batch.items()}


def prepare(objective: SpanCorruption, batch: dict, seed: int = 0, vocab: Vocab = VOCAB) -> dict[str, np.ndarray]:
    return jax.device_get(jax.jit(objective.make(vocab).prepare)(jax.random.key(seed), batch))


def restore(source: list[int], target: list[int]) -> tuple[list[int], list[int]]:
    """(the text, lengths of its spans) from an input and a target without their end marks."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])  # descending ids, in order
    text = list(itertools.chain.from_iterable(spans.get(token, [token]) for token in source))
    assert [token for token in source if token in SENTINELS] == list(spans)
    return text, [len(span) for span in spans.values()]


def test_512_tokens_of_input_come_with_114_of_target_and_nothing_is_padded():
    objective = SpanCorruption()
    assert objective.raw_length(512) == 568 and objective.lengths(568) == (512, 114)
    assert objective.raw_length(1024) == 1137 and objective.lengths(1137)[0] == 1024
    text = np.random.default_rng(0).integers(3, 900, (4, 568))
    out = prepare(objective, batch_of([[row.tolist()] for row in text], 568))
    assert out["input_ids"].shape == (4, 512) and out["decoder_ids"].shape == (4, 114)
    assert np.all(out["segment_ids"] == 1) and np.all(out["span_weights"] == 1) and np.all(out["span_cut"] == 0)
    np.testing.assert_array_equal(out["positions"], np.tile(np.arange(512), (4, 1)))
    for r in range(4):
        assert out["input_ids"][r, -1] == out["span_labels"][r, -1] == VOCAB.eos
        restored, spans = restore(out["input_ids"][r, :-1].tolist(), out["span_labels"][r, :-1].tolist())
        assert restored == text[r].tolist()
        assert len(spans) == 28 and sum(spans) == 85 and min(spans) >= 1
        assert out["input_ids"][r, 0] == text[r, 0]  # a span never begins the document
        np.testing.assert_array_equal(out["decoder_ids"][r], [VOCAB.pad, *out["span_labels"][r, :-1]])
    assert out["span_words"].sum() == 4 * 85


def test_every_document_of_a_packed_row_is_corrupted_on_its_own_and_nothing_is_lost():
    rng = np.random.default_rng(1)
    documents = [[rng.integers(3, 900, n).tolist() for n in sizes] for sizes in ([20, 30, 9], [2, 50], [1, 33], [59])]
    encoded = [[[*document, VOCAB.eos] for document in row] for row in documents]
    out = prepare(SpanCorruption(input_len=64, target_len=40), batch_of(encoded, 64))
    assert np.all(out["span_cut"] == 0)
    for r, row in enumerate(documents):
        for segment, document in enumerate(row, start=1):
            source = out["input_ids"][r][out["segment_ids"][r] == segment].tolist()
            target = out["span_labels"][r][out["decoder_segment_ids"][r] == segment].tolist()
            assert source.pop() == VOCAB.eos and target.pop() == VOCAB.eos
            if len(document) == 1:  # nothing to take out
                assert (source, target) == (document, [])
                continue
            restored, spans = restore(source, target)
            assert restored == document
            noise, count = SpanCorruption().counts(len(document))
            assert (sum(spans), len(spans)) == (noise, count)
        for side in ("", "decoder_"):
            segments, positions = out[f"{side}segment_ids"][r], out[f"{side}positions"][r]
            for segment in range(1, len(row) + 1):
                own = positions[segments == segment]
                np.testing.assert_array_equal(own, np.arange(len(own)))


def noised_as_t5_does(text: list[int], mask: list[bool]) -> tuple[list[int], list[int]]:
    """`noise_span_to_unique_sentinel` and its counterpart of text-to-text-transfer-transformer, token by token."""

    def side(replaced: list[bool]) -> list[int]:
        ids, number = [], 0
        for i, token in enumerate(text):
            if not replaced[i]:
                ids.append(token)
            elif i == 0 or not replaced[i - 1]:
                ids.append(SENTINELS[number])
                number += 1
        return [*ids, VOCAB.eos]

    return side(mask), side([not removed for removed in mask])


def test_unknown_and_special_tokens_of_a_text_are_kept_as_t5_keeps_them():
    """T5 draws spans over all tokens; a row of concatenated documents has end tokens inside."""
    rng = np.random.default_rng(2)
    rows = rng.integers(3, 900, (8, 100))
    rows[rng.random(rows.shape) < 0.2] = VOCAB.unk
    rows[rng.random(rows.shape) < 0.05] = VOCAB.eos
    rows[0, :] = VOCAB.unk
    rows[:, 0], rows[:, -1] = VOCAB.unk, VOCAB.unk
    out = prepare(SpanCorruption(), batch_of([[row.tolist()] for row in rows], 100))
    noise, count = SpanCorruption().counts(100)
    asked_for = 0
    for row, source, target in zip(rows.tolist(), out["input_ids"].tolist(), out["span_labels"].tolist(), strict=True):
        assert (len(source), len(target)) == SpanCorruption().lengths(100)
        restored, spans = restore(source[:-1], target[:-1])
        assert restored == row and (sum(spans), len(spans)) == (noise, count)
        mask, lengths = [], iter(spans)
        for token in source[:-1]:
            mask += [True] * next(lengths) if token in SENTINELS else [False]
        assert (source, target) == noised_as_t5_does(row, mask)
        asked_for += sum(token == VOCAB.unk for token in target)
    assert asked_for > 20 and out["span_words"].sum() == 8 * noise
    assert not out["span_cut"].any() and not out["span_input_cut"].any()


def test_only_the_special_tokens_around_a_document_are_replaced_by_end_tokens():
    vocab = dataclasses.replace(VOCAB, bos=3)
    inner = [[20, 1, 3, 2, 21, 22, 23, 24], [3, 1, 30, 31]]
    documents = [[[3, *inner[0], 1], inner[1]]]  # the second has no special tokens around it but begins with bos
    out = prepare(SpanCorruption(input_len=16, target_len=16), batch_of(documents, 16), vocab=vocab)
    for segment, text in ((1, inner[0]), (2, inner[1][1:])):
        source = out["input_ids"][0][out["segment_ids"][0] == segment].tolist()
        target = out["span_labels"][0][out["decoder_segment_ids"][0] == segment].tolist()
        assert source.pop() == target.pop() == vocab.eos
        assert restore(source, target)[0] == text


def test_left_neighbours_are_those_of_the_text():
    document = list(range(10, 60))
    out = prepare(SpanCorruption(), batch_of([[document]], 50))
    words = out["span_words"][0] > 0
    np.testing.assert_array_equal(out["span_left"][0][words], out["span_labels"][0][words] - 1)


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of `parts` positive numbers."""
    cuts = itertools.combinations(range(1, total), parts - 1)
    return [tuple(np.diff([0, *cut, total]).tolist()) for cut in cuts]


def test_span_lengths_and_gaps_are_uniform_over_all_ways_to_cut():
    objective, rows = SpanCorruption(noise_rate=0.4, mean_span=2.0), 20_000
    assert objective.counts(15) == (6, 3)
    batch = batch_of([[list(range(10, 25))]], 15)
    out = prepare(objective, {name: jnp.repeat(array, rows, axis=0) for name, array in batch.items()})
    found = []
    for source, target in zip(out["input_ids"].tolist(), out["span_labels"].tolist(), strict=True):
        _, spans = restore(source[:-1], target[:-1])
        marks = [i for i, token in enumerate(source[:-1]) if token in SENTINELS]
        gaps = np.diff([-1, *marks]) - 1
        found.append((tuple(spans), tuple(gaps.tolist())))
    lost, kept = compositions(6, 3), compositions(9, 3)
    counts = Counter(found)
    assert set(counts) <= {(a, b) for a in lost for b in kept}
    # Jointly uniform over 10 × 28 outcomes: chi-square of 279 degrees of freedom, 5 standard deviations.
    expected = rows / (len(lost) * len(kept))
    chi_square = sum((counts[a, b] - expected) ** 2 / expected for a in lost for b in kept)
    assert abs(chi_square - 279) < 5 * np.sqrt(2 * 279)


def test_the_same_key_gives_the_same_spans_and_another_key_others():
    batch = batch_of([[list(range(10, 110))]], 100)
    first, again, other = (prepare(SpanCorruption(), batch, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["input_ids"], other["input_ids"])


def test_what_does_not_fit_is_cut_and_counted():
    out = prepare(SpanCorruption(input_len=90, target_len=10), batch_of([[list(range(10, 110))]], 100))
    inputs, targets = SpanCorruption().lengths(100)
    assert out["span_labels"].shape == (1, 10) and out["span_cut"][0] == targets - 10
    assert out["input_ids"].shape == (1, 90) and out["span_input_cut"][0] == inputs - 90 == 1


def test_a_decoder_reads_the_input_and_then_the_target():
    documents = [[list(range(10, 40)), list(range(50, 70))]]
    settings = {"input_len": 56, "target_len": 20}
    apart = prepare(SpanCorruption(**settings), batch_of(documents, 52))
    joined = prepare(SpanCorruption(**settings, architecture="decoder"), batch_of(documents, 52))
    np.testing.assert_array_equal(joined["span_labels"], apart["span_labels"])
    np.testing.assert_array_equal(joined["input_ids"][:, :56], apart["input_ids"])
    first = apart["decoder_positions"][0] == 0
    np.testing.assert_array_equal(joined["input_ids"][0, 56:][first & (apart["decoder_segment_ids"][0] > 0)], VOCAB.eos)
    for segment in (1, 2):
        own = joined["segment_ids"][0] == segment
        np.testing.assert_array_equal(joined["positions"][0][own], np.arange(own.sum()))
        seen = joined["bidirectional"][0][own]
        assert seen.sum() == (apart["segment_ids"][0] == segment).sum() and not seen[seen.sum() :].any()


def test_too_few_sentinels_and_missing_marks_are_named():
    few = Vocab(size=1000, pad=0, eos=1, sentinels=SENTINELS[:3])
    batch = batch_of([[list(range(10, 110))]], 100)
    with pytest.raises(UserError, match=r"a sequence of 100 tokens needs 5 sentinels, the tokenizer has 3"):
        SpanCorruption().make(few).prepare(jax.random.key(0), batch)
    with pytest.raises(UserError, match=r"SpanCorruption needs a eos token"):
        SpanCorruption().make(Vocab(size=1000, pad=0))
    with pytest.raises(UserError, match=r"noise_rate=1.5 must lie between 0 and 1"):
        SpanCorruption(noise_rate=1.5)
