"""Units of masking: how documents are cut into them, which are taken, and that each document keeps to itself."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.config import Mesh
from bertgpt.objectives.corruption import (
    choose_positions,
    group_words,
    length_distribution,
    masking_spans,
    sample_lengths,
    split_key,
)
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.types import UserError, Vocab

CONTINUING = (*range(20, 26), *range(40, 46))
VOCAB = Vocab(size=60, pad=0, unk=1, cls=2, sep=3, mask=4, continuation=CONTINUING)
UNITS = ("token", "word", "ngram", "span")
LENGTH = 96


def pack(rng: np.random.Generator, rows: int, shortest: int = 3, longest: int = 40) -> dict:
    """Packed rows of [CLS] words [SEP], some words unknown, padding at the end of each row."""
    batch = {name: np.zeros((rows, LENGTH), np.int32) for name in ("input_ids", "segment_ids", "positions")}
    for row in range(rows):
        at, segment = 0, 1
        while True:
            size = int(rng.integers(shortest, longest))
            if at + size > LENGTH:
                break
            ids = np.where(rng.random(size) < 0.04, VOCAB.unk, rng.integers(5, 60, size))
            ids[0], ids[-1] = VOCAB.cls, VOCAB.sep
            here = slice(at, at + size)
            batch["input_ids"][row, here], batch["segment_ids"][row, here] = ids, segment
            batch["positions"][row, here] = np.arange(size)
            at, segment = at + size, segment + 1
    return batch


def is_ordinary(batch: dict) -> np.ndarray:
    return (batch["segment_ids"] > 0) & ~np.isin(batch["input_ids"], VOCAB.special)


@functools.cache
def prepare_of(objective: MaskedLM):
    return jax.jit(objective.make(VOCAB).prepare)


def prepared(batch: dict, seed: int = 0, **settings) -> dict:
    settings = {"max_predictions": LENGTH} | settings
    return jax.device_get(prepare_of(MaskedLM(**settings))(jax.random.key(seed), batch))


def predicted(out: dict) -> np.ndarray:
    """[B, S]: true at predicted positions."""
    chosen = np.zeros(out["input_ids"].shape, bool)
    row, slot = np.nonzero(out["mlm_weights"])
    assert not chosen[row, out["mlm_positions"][row, slot]].any()
    chosen[row, out["mlm_positions"][row, slot]] = True
    assert chosen.sum() == len(row)  # no position twice
    return chosen


def documents(batch: dict) -> list[tuple[int, np.ndarray]]:
    """(row, places) of each document."""
    return [
        (row, np.flatnonzero(segments == document))
        for row, segments in enumerate(batch["segment_ids"])
        for document in range(1, segments.max() + 1)
    ]


def units_of(batch: dict, unit: str, key: jax.Array) -> np.ndarray:
    """For each token the place of the first token of its unit."""
    ids, segments = (jnp.asarray(batch[name]) for name in ("input_ids", "segment_ids"))
    return np.asarray(masking_spans(key, ids, segments, VOCAB, unit, 3))


def words_by_hand(ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """For each token of a row the place of the first piece of its word, −1 where there is no word."""
    found = np.full(len(ids), -1)
    for place, (token, segment) in enumerate(zip(ids, segments, strict=True)):
        if segment == 0 or token in VOCAB.special:
            continue
        goes_on = place > 0 and found[place - 1] >= 0 and segments[place - 1] == segment and token in CONTINUING
        found[place] = found[place - 1] if goes_on else place
    return found


def close(count, n: int, p) -> bool:
    """Whether a binomial count is within 5 standard deviations of its mean."""
    return bool(np.all(np.abs(np.asarray(count) - n * p) <= 5 * np.sqrt(n * p * (1 - p))))


# -- how documents are cut --------------------------------------------------------------------------------------------


def test_words_are_cut_as_by_hand(rng: np.random.Generator):
    batch = pack(rng, 64)
    units = units_of(batch, "word", jax.random.key(0))
    expected = np.stack([words_by_hand(*row) for row in zip(batch["input_ids"], batch["segment_ids"], strict=True)])
    mine = is_ordinary(batch)
    np.testing.assert_array_equal(units[mine], expected[mine])
    # A continuing piece right after a special token, and right at the start of another document, begins a word.
    heads = expected == np.arange(LENGTH)
    assert np.any(heads & np.isin(batch["input_ids"], CONTINUING)) and np.any((expected >= 0) & ~heads)
    short = {"input_ids": np.array([[20, 21, 21, 3, 21]]), "segment_ids": np.array([[1, 1, 2, 2, 2]])}
    assert units_of(short, "word", jax.random.key(0))[0, [0, 1, 2, 4]].tolist() == [0, 0, 2, 4]


def test_groups_of_words_are_those_of_counting_along(rng: np.random.Generator):
    opens = rng.random((200, 50)) < 0.1
    starts = opens | (rng.random(opens.shape) < 0.6)
    starts &= np.cumsum(opens, axis=1) > 0
    lengths = rng.integers(1, 8, opens.shape)
    expected = np.zeros_like(starts)
    for row in range(len(opens)):
        for place in range(50):
            if opens[row, place]:
                first, group, left = place, 0, 0
            if starts[row, place]:
                if left == 0:
                    expected[row, place] = True
                    at = np.flatnonzero(starts[row] & (np.arange(50) >= first))[group]  # the run's word of this number
                    group, left = group + 1, lengths[row, at]
                left -= 1
    np.testing.assert_array_equal(group_words(jnp.asarray(opens), jnp.asarray(starts), jnp.asarray(lengths)), expected)


@pytest.mark.parametrize("unit", ["ngram", "span"])
def test_units_are_whole_words_of_one_document_between_special_tokens(rng: np.random.Generator, unit: str):
    batch = pack(rng, 64)
    units = units_of(batch, unit, jax.random.key(1))
    for row in range(64):
        words = words_by_hand(batch["input_ids"][row], batch["segment_ids"][row])
        for place in np.flatnonzero(words >= 0):
            first = units[row, place]
            assert np.all(batch["segment_ids"][row, first : place + 1] == batch["segment_ids"][row, place])
            assert np.all(words[first : place + 1] >= 0) and units[row, first] == first == words[first]
            assert len(set(words[first : place + 1])) <= {"ngram": 3, "span": 10}[unit]
            assert units[row, words[place]] == first  # the rest of the word is in it


def test_ngrams_have_one_to_three_words_by_one_over_n_and_spans_the_papers_mean():
    assert length_distribution("ngram", 3) == pytest.approx((6 / 11, 3 / 11, 2 / 11))
    span = np.array(length_distribution("span", 3))
    assert len(span) == 10 and span.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(span[1:] / span[:-1], 0.8)
    assert round(float(span @ np.arange(1, 11)), 1) == 3.8  # Joshi et al. 2020 §3.1


@pytest.mark.parametrize("unit", ["ngram", "span"])
def test_lengths_of_units_are_independent_and_have_their_distribution(unit: str):
    """The first four units of a document of 96 words: none of them is cut by its end."""
    ids = np.full((4000, LENGTH), 7, np.int32)
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
    heads = units_of(batch, unit, jax.random.key(2)) == np.arange(LENGTH)
    lengths = np.array([np.diff(np.flatnonzero(row))[:4] for row in heads])
    p = np.array(length_distribution(unit, 3))
    for nth in range(4):
        assert close(np.bincount(lengths[:, nth], minlength=len(p) + 1)[1:], 4000, p)
    pairs = np.histogram2d(*lengths[:, 1:3].T, bins=np.arange(len(p) + 1) + 0.5)[0]
    assert close(pairs, 4000, np.outer(p, p))


def test_drawn_lengths_follow_a_distribution_to_its_last_entry():
    drawn = np.asarray(sample_lengths(jax.random.key(0), (300, 1000), (0.5, 0.125, 0.25, 0.125)))
    assert close(np.bincount(drawn.ravel(), minlength=5)[1:], drawn.size, np.array([0.5, 0.125, 0.25, 0.125]))


# -- which are taken --------------------------------------------------------------------------------------------------


def choose(units: list[int], rate: float, rows: int, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """The chosen positions of each of `rows` equal rows of one document."""
    shape = (rows, len(units))
    segments = jnp.ones(shape, jnp.int32)
    at = jnp.broadcast_to(jnp.asarray(units, jnp.int32), shape)
    positions, weights = choose_positions(jax.random.key(seed), segments > 0, segments, rate, count, at)
    return [tuple(p[w > 0].tolist()) for p, w in zip(np.asarray(positions), np.asarray(weights), strict=True)]


def test_every_pair_of_tokens_is_equally_likely():
    chosen = choose([0, 1, 2, 3, 4, 5], 1 / 3, 30_000, 2)
    counts = [chosen.count(pair) for pair in itertools.combinations(range(6), 2)]
    assert sum(counts) == 30_000 and close(counts, 30_000, 1 / 15)


def test_every_unit_is_equally_likely_whatever_its_length():
    chosen = choose([0, 1, 1, 1, 4, 4, 6], 0.01, 20_000, 7)
    for unit in ((0,), (1, 2, 3), (4, 5), (6,)):
        assert close(chosen.count(unit), 20_000, 0.25)


def test_the_unit_that_crosses_the_budget_is_taken_as_often_as_makes_the_mean_right():
    """Three units of three tokens, a budget of 4: the first, and a second one time in three."""
    sizes = np.array([len(row) for row in choose([0, 0, 0, 3, 3, 3, 6, 6, 6], 0.45, 20_000, 9)])
    assert set(sizes) == {3, 6} and close((sizes == 6).sum(), 20_000, 1 / 3)


@pytest.mark.parametrize("unit", UNITS)
def test_the_mean_number_of_predictions_is_the_budget(rng: np.random.Generator, unit: str):
    ids = rng.integers(5, 60, (3000, LENGTH)).astype(np.int32)
    ids[:, 0], ids[:, -1] = VOCAB.cls, VOCAB.sep
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids), "positions": np.zeros_like(ids)}
    # A budget of 38 of 94: so large that no first unit exceeds it, where the mean would be more.
    sizes = prepared(batch, unit=unit, mask_rate=0.4)["mlm_weights"].sum(axis=1)
    if unit == "token":
        assert np.all(sizes == 38)
    else:
        assert sizes.std() > 0.3 and abs(sizes.mean() - 38) < 5 * sizes.std() / np.sqrt(len(sizes))


@pytest.mark.parametrize("unit", UNITS)
def test_places_in_a_document_are_equally_likely(unit: str):
    """All but those near its ends, where units are cut."""
    ids = np.full((6000, 60), 7, np.int32)
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids), "positions": np.zeros_like(ids)}
    rate = predicted(prepared(batch, unit=unit, mask_rate=0.2, max_predictions=60)).mean(axis=0)
    middle = rate if unit in ("token", "word") else rate[25:35]
    assert np.all(np.abs(middle - middle.mean()) < 5 * np.sqrt(0.2 * 0.8 / 6000))
    assert abs(rate.mean() - 0.2) < 0.004


@pytest.mark.parametrize("unit", UNITS)
def test_neither_special_tokens_nor_padding_are_predicted_and_every_document_has_its_share(
    rng: np.random.Generator, unit: str
):
    batch = pack(rng, 128)
    out = prepared(batch, unit=unit)
    chosen, ordinary = predicted(out), is_ordinary(batch)
    assert not np.any(chosen & ~ordinary)
    assert not np.any((out["input_ids"] != batch["input_ids"]) & ~chosen)
    shares = [(chosen[row, at].sum(), ordinary[row, at].sum()) for row, at in documents(batch)]
    assert len(shares) > 400 and all((share > 0) == (size > 0) for share, size in shares)


@pytest.mark.parametrize("unit", ["word", "ngram", "span"])
def test_whole_words_are_predicted_or_not_at_all(rng: np.random.Generator, unit: str):
    batch = pack(rng, 128)
    chosen = predicted(prepared(batch, unit=unit))
    longer = 0
    for row in range(128):
        words = words_by_hand(batch["input_ids"][row], batch["segment_ids"][row])
        for word in np.unique(words[words >= 0]):
            share = chosen[row, words == word]
            assert share.all() or not share.any()
            longer += share.all() and len(share) > 1
    assert longer > 50


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_masked_in_a_document_does_not_depend_on_its_neighbours(rng: np.random.Generator, unit: str):
    """The same 30 tokens at the same place of rows that differ in everything else."""
    one, other = pack(rng, 200, 12, 13), pack(rng, 200, 3, 36)
    text = rng.integers(5, 60, (200, 30))
    for batch, number in ((one, 9), (other, 1)):
        batch["segment_ids"][:, 36:] = np.where(batch["segment_ids"][:, 36:], batch["segment_ids"][:, 36:] + 50, 0)
        batch["segment_ids"][:, 36:66] = number
        batch["input_ids"][:, 36:66] = text
    other["segment_ids"][:, :36] = 0
    here = slice(36, 66)
    chosen, same = (predicted(prepared(batch, unit=unit, mask_rate=0.3))[:, here] for batch in (one, other))
    np.testing.assert_array_equal(chosen, same)
    assert chosen.sum() > 200 * 6


def test_too_few_slots_drop_whole_words_and_no_document(rng: np.random.Generator):
    batch = pack(rng, 128, 8, 20)
    full = predicted(prepared(batch, unit="word", mask_rate=0.4))
    out = prepared(batch, unit="word", mask_rate=0.4, max_predictions=20)
    few = predicted(out)
    assert not np.any(few & ~full) and np.all(full.sum(axis=1) > 20)
    assert few.sum(axis=1).mean() > 19  # a slot may stay empty where the next word has several pieces
    for row, at in documents(batch):
        assert few[row, at].any() or not full[row, at].any()
        words = words_by_hand(batch["input_ids"][row], batch["segment_ids"][row])[at]
        for word in np.unique(words[words >= 0]):
            share = few[row, at[words == word]]
            assert share.all() or not share.any()


def test_a_word_longer_than_all_slots_is_cut():
    for seed in range(5):
        chosen = choose([0, 0, 0, 0, 4, 4, 4, 4], 0.1, 10, 3, seed)
        assert all(row in ((0, 1, 2), (4, 5, 6)) for row in chosen)


# -- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit, shared", [("word", False), ("ngram", False), ("span", True)])
def test_tokens_share_their_fate_in_spans_alone(rng: np.random.Generator, unit: str, shared: bool):
    """BERT and ALBERT draw [MASK], random or unchanged for each token, SpanBERT for each span."""
    batch = pack(rng, 400)
    settings = dict(unit=unit, mask_token_rate=0.5, random_token_rate=0.0)
    out = prepared(batch, **settings)
    key, _ = split_key(jax.random.key(0))
    units = units_of(batch, unit, key)
    row, slot = np.nonzero(out["mlm_weights"])
    place = out["mlm_positions"][row, slot]
    masked = out["input_ids"][row, place] == VOCAB.mask
    assert close(masked.sum(), len(masked), 0.5) or shared
    groups: dict[tuple[int, int], list[bool]] = {}
    for r, p, m in zip(row, place, masked, strict=True):
        groups.setdefault((r, units[r, p]), []).append(bool(m))
    alike = [len(set(group)) == 1 for group in groups.values() if len(group) == 2]
    assert len(alike) > 150 and (all(alike) if shared else close(sum(alike), len(alike), 0.5))
    if shared:
        assert close(sum(group[0] for group in groups.values()), len(groups), 0.5)


# -- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_static_noise_depends_on_row_and_epoch_alone(rng: np.random.Generator, unit: str):
    batch = pack(rng, 32) | {"row": np.arange(32, dtype=np.int32)}

    def ids(seed: int, epoch: int, batch: dict = batch) -> np.ndarray:
        given = batch | {"epoch": np.full(32, epoch, np.int32)}
        return prepared(given, seed, unit=unit, static_masks=3)["input_ids"]

    np.testing.assert_array_equal(ids(0, 0), ids(1, 0))  # whatever the step
    np.testing.assert_array_equal(ids(0, 1), ids(5, 4))  # three of them in turn
    for a, b in itertools.combinations(range(3), 2):
        assert np.mean(np.any(ids(0, a) != ids(0, b), axis=1)) > 0.9
    order = rng.permutation(32)  # another step, other company
    np.testing.assert_array_equal(ids(2, 0, {k: v[order] for k, v in batch.items()}), ids(0, 0)[order])


def test_rows_of_one_text_are_masked_differently_by_their_number():
    ids = np.full((50, LENGTH), 7, np.int32)
    batch = {"input_ids": ids, "segment_ids": np.ones_like(ids), "positions": np.zeros_like(ids)}
    batch |= {"row": np.arange(50, dtype=np.int32), "epoch": np.zeros(50, np.int32)}
    assert len(np.unique(predicted(prepared(batch, static_masks=1)), axis=0)) == 50


@pytest.mark.parametrize("unit", UNITS)
def test_fresh_noise_is_a_function_of_the_key(rng: np.random.Generator, unit: str):
    batch = pack(rng, 32)
    a, b, c = (prepared(batch, seed, unit=unit)["input_ids"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.mean(np.any(a != c, axis=1)) > 0.9


@pytest.mark.parametrize("static_masks", [0, 2])
def test_noise_does_not_depend_on_the_number_of_devices(rng: np.random.Generator, static_masks: int):
    batch = pack(rng, 32) | {"row": np.arange(32, dtype=np.int32), "epoch": np.zeros(32, np.int32)}
    settings = dict(unit="span", static_masks=static_masks, max_predictions=20)
    alone = prepared(batch, **settings)
    mesh = make_mesh(Mesh(data=8), jax.devices())
    with jax.set_mesh(mesh):
        prepare = jax.jit(MaskedLM(**settings).make(VOCAB).prepare)
        shared = jax.device_get(prepare(jax.random.key(0), put_batch(batch, mesh)))
    for name in ("input_ids", "mlm_positions", "mlm_labels", "mlm_weights"):
        np.testing.assert_array_equal(shared[name], alone[name])


# -- bad settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["row", "epoch"])
def test_static_noise_needs_each_rows_number_and_epoch(rng: np.random.Generator, missing: str):
    batch = pack(rng, 2) | {"row": np.zeros(2, np.int32), "epoch": np.zeros(2, np.int32)}
    del batch[missing]
    with pytest.raises(UserError, match=f"static_masks=2 needs '{missing}' in the batch"):
        prepared(batch, static_masks=2)


def test_whole_words_need_pieces_that_continue_a_word():
    with pytest.raises(UserError, match="no token of this vocabulary continues a word"):
        MaskedLM(unit="word").make(Vocab(size=60, pad=0, mask=4))


@pytest.mark.parametrize(
    "settings", [{"max_ngram": 0}, {"static_masks": -1}, {"label_smoothing": 1.0}, {"z_loss": -1.0}]
)
def test_impossible_settings_are_refused_by_name(settings: dict):
    name, value = next(iter(settings.items()))
    with pytest.raises(UserError, match=f"MaskedLM: {name}={value}"):
        MaskedLM(**settings)
