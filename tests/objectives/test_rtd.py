"""Replaced-token detection: what is drawn, what counts as replaced, and which gradients flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.objectives.core import sample_tokens
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.rtd import ReplacedTokenDetection
from bertgpt.types import UserError, Vocab

VOCAB = Vocab(size=20, pad=0, unk=1, cls=2, sep=3, mask=4)
ROWS, LENGTH = 64, 32


@pytest.fixture
def batch(rng: np.random.Generator) -> dict[str, jax.Array]:
    ids = rng.integers(5, 20, (ROWS, LENGTH)).astype(np.int32)
    ids[:, 0], ids[:, -1] = VOCAB.cls, VOCAB.sep
    rows = {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "type_ids": np.zeros_like(ids),
    }
    return {name: jnp.asarray(array) for name, array in rows.items()}


class Fake:
    """A generator that gives every word the scores `words`, and a discriminator that gives every token `score`."""

    def __init__(self, words: np.ndarray, score: float):
        self.params = {"words": jnp.asarray(words), "score": jnp.asarray(score)}
        self.seen: list[jax.Array] = []

    def __call__(self, params: dict, inputs=None, *, method: str = "__call__", rng=None, hidden=None) -> jax.Array:
        if method in ("__call__", "generate"):
            self.seen.append(inputs.input_ids)
            return jnp.zeros((*inputs.input_ids.shape, 1))
        if method == "mlm_logits":
            return jnp.broadcast_to(params["words"], (*hidden.shape[:-1], VOCAB.size))
        return jnp.full(hidden.shape[:-1], params["score"])


def test_words_are_drawn_from_the_generators_distribution():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=12))
    p = np.asarray(jax.nn.softmax(logits[:10]))
    uniforms = jnp.asarray(np.random.default_rng(2).random((1, 200_000)))
    drawn = np.asarray(sample_tokens(jnp.broadcast_to(logits, (1, 200_000, 12)), uniforms, 10))[0]
    frequency = np.bincount(drawn, minlength=12) / drawn.size
    assert np.all(frequency[10:] == 0)  # rows of the table that are no words are never drawn
    assert np.all(np.abs(frequency[:10] - p) < 4.5 * np.sqrt(p * (1 - p) / drawn.size))
    edge = sample_tokens(jnp.broadcast_to(logits, (1, 2, 12)), jnp.asarray([[0.0, np.nextafter(1.0, 0.0)]]), 10)
    np.testing.assert_array_equal(edge, [[0, 9]])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_discriminator_sees_words_drawn_at_the_temperature(batch: dict, temperature: float):
    words = np.random.default_rng(1).normal(size=20) * 2
    fake, objective = Fake(words, 0.0), ReplacedTokenDetection(temperature=temperature).make(VOCAB)
    big = {name: jnp.repeat(array, 20, axis=0) for name, array in batch.items()}
    prepared = jax.device_get(objective.prepare(jax.random.key(0), big))
    objective.loss(fake, fake.params, jax.tree.map(jnp.asarray, prepared), None)
    row, slot = np.nonzero(prepared["mlm_weights"])
    drawn = np.asarray(fake.seen[1])[row, prepared["mlm_positions"][row, slot]]
    p = np.asarray(jax.nn.softmax(jnp.asarray(words) / temperature))
    frequency = np.bincount(drawn, minlength=20) / len(drawn)
    assert np.all(np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / len(drawn)))


def test_a_drawn_word_that_is_the_original_counts_as_original(batch: dict):
    words = np.full(20, -1e9)
    words[7] = 0.0  # always draws word 7
    fake, objective = Fake(words, -1.0), ReplacedTokenDetection().make(VOCAB)
    prepared = objective.prepare(jax.random.key(0), batch)
    loss = objective.loss(fake, fake.params, prepared, None)
    masked = np.zeros((ROWS, LENGTH), bool)
    row, slot = np.nonzero(prepared["mlm_weights"])
    masked[row, prepared["mlm_positions"][row, slot]] = True
    original = np.asarray(batch["input_ids"])
    corrupted = np.where(masked, 7, original)
    np.testing.assert_array_equal(fake.seen[1], corrupted)
    replaced = masked & (original != 7)
    assert 0 < replaced.sum() < masked.sum()
    # Always “original”, with σ(−1) for replaced: the metrics are the shares, the loss is the formula.
    rate = replaced.mean()
    metrics = {name: float(value.sum / value.weight) for name, value in loss.metrics.items() if value.weight}
    assert metrics["rtd_accuracy"] == pytest.approx(1 - rate) == pytest.approx(metrics["rtd_always_original"])
    expected = rate * np.log(1 + np.exp(1.0)) + (1 - rate) * np.log(1 + np.exp(-1.0))
    assert metrics["rtd_loss"] == pytest.approx(expected, rel=1e-5)
    term = loss.terms["discriminator"]
    assert float(term.sum / term.weight) == pytest.approx(50 * expected, rel=1e-5)
    assert loss.terms["discriminator"].weight == ROWS * LENGTH


def test_the_generator_sees_85_percent_masks_15_percent_unchanged_and_no_random_words(batch: dict):
    big = {name: jnp.repeat(array, 50, axis=0) for name, array in batch.items()}
    prepared = jax.device_get(ReplacedTokenDetection().make(VOCAB).prepare(jax.random.key(0), big))
    row, slot = np.nonzero(prepared["mlm_weights"])
    shown = prepared["input_ids"][row, prepared["mlm_positions"][row, slot]]
    original = big["input_ids"][row, prepared["mlm_positions"][row, slot]]
    np.testing.assert_array_equal(prepared["original_ids"], big["input_ids"])
    is_mask = shown == VOCAB.mask
    assert np.all(is_mask | (shown == original))
    assert abs(is_mask.mean() - 0.85) < 4.5 * np.sqrt(0.85 * 0.15 / len(row))


def test_no_gradient_of_the_discriminator_reaches_the_generator(batch: dict):
    objective = ReplacedTokenDetection().make(VOCAB)
    fake = Fake(np.random.default_rng(0).normal(size=20), 0.3)
    prepared = objective.prepare(jax.random.key(0), batch)

    def term(params: dict, name: str) -> jax.Array:
        return objective.loss(fake, params, prepared, None).terms[name].sum

    through = jax.grad(term)(fake.params, "discriminator")
    assert np.all(np.asarray(through["words"]) == 0.0) and through["score"] != 0.0
    assert np.any(np.asarray(jax.grad(term)(fake.params, "generator")["words"]) != 0.0)


def test_drawing_is_a_function_of_key_and_batch(batch: dict):
    objective = ReplacedTokenDetection().make(VOCAB)
    fake = Fake(np.zeros(20), 0.0)
    for seed in (0, 0, 1):
        objective.loss(fake, fake.params, objective.prepare(jax.random.key(seed), batch), jax.random.key(9))
    first, again, other = fake.seen[1::2]
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_unusable_settings_are_named():
    with pytest.raises(UserError, match="discriminator_weight=0.0 must be positive"):
        ReplacedTokenDetection(discriminator_weight=0.0)
    with pytest.raises(UserError, match="masking.pair='nsp'"):
        ReplacedTokenDetection(masking=MaskedLM(pair="nsp"))
    with pytest.raises(UserError, match="needs a mask token"):
        ReplacedTokenDetection().make(Vocab(size=20, pad=0))
