"""Causal and prefix language models: which words are asked for, and what their loss is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bertgpt.models.apply import make_apply
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.core import inputs_of
from bertgpt.objectives.lm import CausalLM, PrefixLM, prefix_lengths
from bertgpt.types import UserError, Vocab

VOCAB = Vocab(size=40, pad=0, eos=1)
KEY = jax.random.key(0)


def packed(sizes: list[int], length: int) -> dict[str, jax.Array]:
    """One row of documents of these sizes."""
    batch = {name: np.zeros((1, length), np.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")}
    at = 0
    for segment, n in enumerate(sizes, start=1):
        here = slice(at, at + n)
        batch["input_ids"][0, here] = np.arange(2, 2 + n) + 10 * (segment - 1)
        batch["segment_ids"][0, here], batch["positions"][0, here] = segment, np.arange(n)
        at += n
    return {name: jnp.asarray(array) for name, array in batch.items()}


def test_every_token_but_each_documents_first_is_asked_for_once():
    batch = packed([5, 1, 4], 14)
    out = CausalLM().make(VOCAB).prepare(KEY, batch)
    asked = np.asarray(out["lm_weights"][0]) > 0
    np.testing.assert_array_equal(np.flatnonzero(asked), [0, 1, 2, 3, 6, 7, 8])
    np.testing.assert_array_equal(
        np.asarray(out["lm_labels"][0])[asked], np.asarray(batch["input_ids"])[0, [1, 2, 3, 4, 7, 8, 9]]
    )


def test_loss_smoothing_and_z_loss_are_their_formulas(float64: None):
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(1, 14, 6)), rng.normal(size=(40, 6))

    def apply(params: dict, inputs=None, *, method: str = "__call__", rng=None, hidden=None) -> jax.Array:
        return params["h"] if method == "__call__" else hidden @ params["e"].T

    batch = packed([5, 1, 4], 14)
    objective = CausalLM(label_smoothing=0.1, z_loss=1e-3).make(VOCAB)
    loss = objective.loss(
        apply, {"h": jnp.asarray(hidden), "e": jnp.asarray(table)}, objective.prepare(KEY, batch), None
    )
    total = plain = 0.0
    for place in (0, 1, 2, 3, 6, 7, 8):
        logits = table @ hidden[0, place]
        p = np.exp(logits) / np.exp(logits).sum()
        target = np.full(40, 0.1 / 40)
        target[batch["input_ids"][0, place + 1]] += 0.9
        total += -np.sum(target * np.log(p)) + 1e-3 * np.log(np.exp(logits).sum()) ** 2
        plain -= np.log(p[batch["input_ids"][0, place + 1]])
    np.testing.assert_allclose(loss.terms["lm"].sum, total, rtol=1e-12)
    np.testing.assert_allclose(loss.metrics["lm_loss"].sum, plain, rtol=1e-12)
    assert loss.terms["lm"].weight == 7


def test_a_prefix_ends_anywhere_within_its_document_with_equal_chance():
    rows = 30_000
    batch = {name: jnp.repeat(array, rows, axis=0) for name, array in packed([7, 1, 4], 14).items()}
    split = np.asarray(jax.jit(prefix_lengths)(KEY, batch))
    first, second, third = split[:, 0], split[:, 7], split[:, 8]
    assert set(first) == {1, 2, 3, 4, 5, 6} and set(second) == {1} and set(third) == {1, 2, 3}
    for values in (first, third):
        assert scipy.stats.chisquare(np.unique(values, return_counts=True)[1]).pvalue > 1e-4
    assert abs(np.corrcoef(first, third)[0, 1]) < 4 / np.sqrt(rows)
    assert np.all(split[:, :7] == first[:, None])


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_exactly_the_words_after_the_prefix_are_asked_for(architecture: str):
    batch = packed([7, 1, 4], 14)
    objective = PrefixLM(architecture=architecture).make(VOCAB)
    out = objective.prepare(jax.random.key(3), batch)
    split = np.asarray(prefix_lengths(jax.random.key(3), batch))[0]
    targets = objective.targets(batch, out)
    asked = np.asarray(targets.weight[0]) > 0
    ids, positions, segments = (np.asarray(batch[name])[0] for name in ("input_ids", "positions", "segment_ids"))
    wanted = [(ids[i - 1], ids[i]) for i in range(12) if positions[i] >= split[i]]
    assert list(zip(np.asarray(targets.left)[0][asked], np.asarray(targets.token)[0][asked], strict=True)) == wanted
    prefix = (positions < split) & (segments > 0)
    if architecture == "decoder":
        np.testing.assert_array_equal(out["bidirectional"][0], prefix)
    else:
        np.testing.assert_array_equal(out["segment_ids"][0] > 0, prefix)
        first = (positions == split) & ~prefix
        np.testing.assert_array_equal(out["decoder_ids"][0][first], VOCAB.pad)
        later = (positions > split) & (segments > 0)
        np.testing.assert_array_equal(out["decoder_ids"][0][later], ids[np.flatnonzero(later) - 1])


def test_a_decoder_sees_all_of_its_prefix_and_of_the_rest_only_what_came_before():
    config = GptConfig(
        vocab_size=40, d_model=16, num_layers=2, num_heads=2, d_ff=32, max_len=16, dropout=0.0, stddev=0.5
    )
    module = config.make()
    batch = packed([8, 4], 14)
    prefix = (batch["positions"] < 4) & (batch["segment_ids"] == 1)
    inputs = inputs_of(batch | {"bidirectional": prefix})
    params = module.init(jax.random.key(0), inputs)["params"]
    apply = make_apply(module)

    def changed_by(place: int) -> list[int]:
        """Places whose state depends on the token at `place`."""
        other = inputs.input_ids.at[0, place].set(39)
        before, after = (apply(params, inputs._replace(input_ids=ids)) for ids in (inputs.input_ids, other))
        return np.flatnonzero(np.any(np.asarray(before != after)[0], axis=-1)).tolist()

    assert changed_by(3) == list(range(8))  # in the prefix: seen by the whole document
    assert changed_by(5) == [5, 6, 7]
    assert changed_by(9) == [9, 10, 11]  # another document, without a prefix


def test_an_encoder_decoder_needs_a_token_to_start_with():
    with pytest.raises(UserError, match="PrefixLM needs a pad token"):
        PrefixLM(architecture="encoder_decoder").make(Vocab(size=10, eos=1))
