"""Masking: what is chosen, what is shown, and that both are functions of the key."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.objectives.core import is_ordinary
from bertgpt.objectives.corruption import choose_positions, corrupt, scatter_tokens
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.rtd import ReplacedTokenDetection
from bertgpt.types import UserError, Vocab

VOCAB = Vocab(size=60, pad=0, unk=1, cls=2, sep=3, mask=4)


@pytest.fixture
def batch(rng: np.random.Generator) -> dict:
    """512 rows of 64: [CLS] text [SEP] and padding, of many lengths, some unknown words inside."""
    ids = rng.integers(5, 60, (512, 64)).astype(np.int32)
    ids[rng.random(ids.shape) < 0.03] = VOCAB.unk
    lengths = rng.integers(8, 65, 512)
    at = np.arange(64)
    ids[:, 0] = VOCAB.cls
    ids[np.arange(512), lengths - 1] = VOCAB.sep
    segments = (at < lengths[:, None]).astype(np.int32)
    ids = ids * segments
    return {
        "input_ids": jnp.asarray(ids),
        "segment_ids": jnp.asarray(segments),
        "positions": jnp.asarray(at * segments),
    }


def prepared(batch: dict, seed: int = 0, **settings) -> dict:
    return jax.jit(MaskedLM(**settings).make(VOCAB).prepare)(jax.random.key(seed), batch)


def test_special_tokens_and_padding_are_never_masked(batch: dict):
    out = prepared(batch, mask_rate=0.5)
    changed = np.asarray(out["input_ids"] != batch["input_ids"])
    special = np.isin(np.asarray(batch["input_ids"]), VOCAB.special)
    assert changed.any() and not (changed & special).any()
    real = np.asarray(out["mlm_weights"]) > 0
    assert not np.isin(np.asarray(out["mlm_labels"])[real], VOCAB.special).any()


def test_each_row_predicts_max_1_round_n_rate_tokens(batch: dict):
    out = prepared(batch, mask_rate=0.15)
    maskable = np.asarray(is_ordinary(batch["input_ids"], batch["segment_ids"], VOCAB)).sum(axis=1)
    expected = np.maximum(1, np.round(np.float32(maskable) * np.float32(0.15)))
    np.testing.assert_array_equal(np.asarray(out["mlm_weights"]).sum(axis=1), expected)


def test_double_precision_predicts_the_same_tokens(batch: dict):
    expected = prepared(batch)
    with jax.enable_x64(True):
        found = prepared(batch)
    for name in ("mlm_positions", "mlm_weights", "mlm_labels"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_labels_are_the_original_tokens_and_positions_are_distinct(batch: dict):
    out = jax.device_get(prepared(batch))
    for row in range(512):
        used = out["mlm_positions"][row][out["mlm_weights"][row] > 0]
        assert len(set(used.tolist())) == len(used)
        np.testing.assert_array_equal(out["mlm_labels"][row][: len(used)], np.asarray(batch["input_ids"])[row, used])
        untouched = np.setdiff1d(np.arange(64), used)
        np.testing.assert_array_equal(out["input_ids"][row, untouched], np.asarray(batch["input_ids"])[row, untouched])


@pytest.mark.parametrize(
    "settings",
    [{"unit": "word"}, {"unit": "ngram"}, {"unit": "span"}, {"unit": "span", "max_predictions": 3, "static_masks": 2}],
    ids=str,
)
def test_inputs_and_labels_together_hold_every_token(batch: dict, settings: dict):
    vocab = dataclasses.replace(VOCAB, continuation=tuple(range(30, 60)))
    rows = {name: array[:64] for name, array in batch.items()} | {"row": jnp.arange(64), "epoch": jnp.zeros(64, int)}
    objective = ReplacedTokenDetection(MaskedLM(mask_rate=0.3, random_token_rate=0.2, **settings))
    out = jax.jit(objective.make(vocab).prepare)(jax.random.key(0), rows)
    restored = scatter_tokens(out["input_ids"], out["mlm_positions"], out["mlm_labels"], out["mlm_weights"])
    np.testing.assert_array_equal(restored, rows["input_ids"])
    np.testing.assert_array_equal(out["original_ids"], rows["input_ids"])
    np.testing.assert_array_equal(out["segment_ids"], rows["segment_ids"])
    assert (np.asarray(out["input_ids"]) != np.asarray(rows["input_ids"])).sum() > 64


def test_eighty_ten_ten():
    tokens = jnp.full((1000, 1000), 30)
    shown = np.asarray(corrupt(jax.random.key(1), tokens, VOCAB, 0.8, 0.1))
    n = shown.size

    def close(count: int, p: float) -> bool:
        return abs(count - n * p) < 5 * np.sqrt(n * p * (1 - p))

    assert close((shown == VOCAB.mask).sum(), 0.8)
    assert close((shown == 30).sum(), 0.1 + 0.1 / 55)  # kept, or drawn by chance
    drawn = shown[(shown != VOCAB.mask) & (shown != 30)]
    counts = np.bincount(drawn, minlength=60)
    assert (counts[list(VOCAB.special)] == 0).all()
    ordinary = np.setdiff1d(np.arange(5, 60), [30])
    assert all(close(counts[v], 0.1 / 55) for v in ordinary)


def test_special_ids_scattered_over_the_vocabulary_are_never_drawn():
    """The released BERT vocabularies have them at 0 and 100 … 103."""
    vocab = Vocab(size=120, pad=0, unk=100, cls=101, sep=102, mask=103)
    drawn = np.asarray(corrupt(jax.random.key(0), jnp.full((300, 300), 7), vocab, 0.0, 1.0))
    assert sorted(set(drawn.ravel().tolist())) == [v for v in range(120) if v not in vocab.special]


def test_every_token_is_equally_likely_to_be_chosen():
    segments = jnp.ones((4000, 20), jnp.int32)
    positions, weights = choose_positions(jax.random.key(0), segments > 0, segments, 0.15, 3)
    counts = np.bincount(np.asarray(positions)[np.asarray(weights) > 0], minlength=20)
    assert counts.sum() == 12_000
    assert np.all(np.abs(counts - 600) < 5 * np.sqrt(600))


def test_each_document_of_a_packed_row_is_masked_on_its_own():
    segments = jnp.asarray([[1] * 20 + [2] * 10 + [3] * 2])
    maskable = jnp.ones((1, 32), bool)
    for seed in range(20):
        positions, weights = choose_positions(jax.random.key(seed), maskable, segments, 0.15, 8)
        used = np.asarray(segments)[0, np.asarray(positions)[0][np.asarray(weights)[0] > 0]]
        assert np.bincount(used, minlength=4).tolist() == [0, 3, 2, 1]  # rounds half to even, at least one


def test_too_few_slots_drop_tokens_but_no_document():
    segments = jnp.asarray([[1] * 12 + [2] * 12 + [3] * 8])
    for seed in range(20):
        positions, weights = choose_positions(jax.random.key(seed), jnp.ones((1, 32), bool), segments, 0.5, 5)
        used = np.asarray(segments)[0, np.asarray(positions)[0]]
        assert np.asarray(weights).sum() == 5 and set(used.tolist()) == {1, 2, 3}


def test_noise_is_a_function_of_the_key(batch: dict):
    a, b, c = (prepared(batch, seed)["input_ids"] for seed in (0, 0, 1))
    assert jnp.array_equal(a, b) and not jnp.array_equal(a, c)


def test_empty_slots_change_nothing():
    ids = jnp.asarray([[7, 8, 9]])
    out = scatter_tokens(ids, jnp.asarray([[1, 0]]), jnp.asarray([[4, 4]]), jnp.asarray([[1.0, 0.0]]))
    assert out.tolist() == [[7, 4, 9]]


@pytest.mark.parametrize("pair, rows", [("nsp", "pairs"), ("sop", "swapped_pairs")])
def test_sentence_pairs_need_rows_that_have_them(batch: dict, pair: str, rows: str):
    with pytest.raises(UserError, match=f"set data.layout to '{rows}' or objective.pair to None"):
        MaskedLM(pair=pair).make(VOCAB).prepare(jax.random.key(0), batch)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_rate": 0.0}, "mask_rate=0.0"),
        ({"mask_token_rate": 1.2}, "mask_token_rate=1.2"),
        ({"mask_token_rate": 0.9, "random_token_rate": 0.2}, "exceed 1"),
        ({"max_predictions": 0}, "max_predictions=0"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        MaskedLM(**settings)


def test_only_tokens_of_the_tokenizer_are_ever_predicted():
    """The model's table may be larger than the vocabulary."""
    vocab = Vocab(size=20, pad=0, unk=1, cls=2, sep=3, mask=4)

    def apply(params, inputs=None, *, method="__call__", rng=None, hidden=None):
        return jnp.arange(32.0) * jnp.ones((*hidden.shape[:2], 32)) if method == "mlm_logits" else jnp.ones((1, 8, 4))

    zeros = jnp.zeros((1, 8), jnp.int32)
    batch = {name: zeros for name in ("input_ids", "segment_ids", "positions", "type_ids")}
    answer = MaskedLM().make(vocab).predict(apply, None, batch | {"mlm_positions": zeros[:, :2]})
    assert answer["tokens"][0, 0].tolist() == [19, 18, 17, 16, 15]
    assert answer["probabilities"][0, 0].sum() > 0.99
