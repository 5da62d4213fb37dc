"""Text to text: which words are asked for, what their loss is, and that a packed row changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from bertgpt.data.examples import SequenceDataset, Side
from bertgpt.data.loader import Batches
from bertgpt.models.apply import make_apply
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.core import inputs_of
from bertgpt.objectives.seq2seq import ConditionalLM, Seq2Seq
from bertgpt.types import Inputs, UserError, Vocab

VOCAB = Vocab(size=40, pad=0, eos=1)
KEY = jax.random.key(0)
SOURCES = [[5, 6, 7, 1], [8, 9, 1], [5, 1], [9, 8, 7, 6, 1]]
TARGETS = [[15, 16, 1], [18, 1], [13, 14, 12, 11, 1], [19, 1]]
T5 = T5Config(
    vocab_size=40, d_model=16, num_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8, d_ff=16, dropout=0.0
)
GPT = GptConfig(
    vocab_size=40, d_model=16, num_layers=1, num_heads=2, d_ff=16, max_len=32, dropout=0.0, attention_dropout=0.0
)


def pairs(packed: bool = False) -> SequenceDataset:
    """Rows of an encoder–decoder."""
    return SequenceDataset(Side(SOURCES, 9, 0), Side(TARGETS, 8, 0), vocab_size=40, packed=packed)


def texts(packed: bool = False) -> SequenceDataset:
    """The same as rows of a decoder."""
    joined = [s + t for s, t in zip(SOURCES, TARGETS, strict=True)]
    mask = [[0] * len(s) + [1] * len(t) for s, t in zip(SOURCES, TARGETS, strict=True)]
    return SequenceDataset(Side(joined, 16, 0), mask=mask, vocab_size=40, packed=packed)


FORMS = {"encoder_decoder": (Seq2Seq, pairs, T5), "decoder": (ConditionalLM, texts, GPT)}


def batch_of(rows: SequenceDataset, size: int) -> dict[str, jax.Array]:
    """All rows, filled up to `size`."""
    return {name: jnp.asarray(x) for name, x in Batches(rows, size, 0, shuffle=False)[0].items()}


def fake(params: dict, inputs=None, *, method: str = "__call__", rng=None, auxiliary=None, hidden=None) -> jax.Array:
    """A model whose hidden states are given, and whose logits are their products with a table."""
    if method == "lm_logits":
        return hidden @ params["e"].T
    return params["h"] if auxiliary is None else (params["h"], {})


@pytest.mark.parametrize("architecture", FORMS)
def test_every_target_word_and_its_end_mark_is_asked_for_once(architecture: str):
    objective, rows, _ = FORMS[architecture]
    for packed in (False, True):
        out = objective().make(VOCAB).prepare(KEY, batch_of(rows(packed), 6))
        asked = np.asarray(out["target_labels"])[np.asarray(out["target_weights"]) > 0]
        assert sorted(asked) == sorted(word for target in TARGETS for word in target)


@pytest.mark.parametrize("architecture", FORMS)
def test_loss_smoothing_and_z_loss_are_their_formulas(architecture: str, float64: None):
    objective, rows, _ = FORMS[architecture]
    batch = batch_of(rows(), 6)
    width = 8 if architecture == "encoder_decoder" else 16
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(6, width, 5)), rng.normal(size=(40, 5))
    made = objective(label_smoothing=0.1, z_loss=1e-3).make(VOCAB)
    prepared = made.prepare(KEY, batch)
    loss = made.loss(fake, {"h": jnp.asarray(hidden), "e": jnp.asarray(table)}, prepared, None)
    total = plain = right = 0.0
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        for t, word in enumerate(target):
            # A decoder alone says the first word of a target at the last token of its source.
            logits = table @ hidden[row, t if architecture == "encoder_decoder" else len(source) + t - 1]
            log_p = logits - scipy.special.logsumexp(logits)
            total += -0.9 * log_p[word] - 0.1 * log_p.mean() + 1e-3 * scipy.special.logsumexp(logits) ** 2
            plain -= log_p[word]
            right += logits.argmax() == word
    np.testing.assert_allclose(loss.terms["target"].sum, total, rtol=1e-12)
    np.testing.assert_allclose(loss.metrics["target_loss"].sum, plain, rtol=1e-12)
    assert loss.metrics["target_accuracy"].sum == right
    assert loss.terms["target"].weight == sum(map(len, TARGETS))
    given = made.predict(fake, {"h": jnp.asarray(hidden), "e": jnp.asarray(table)}, batch)
    np.testing.assert_allclose(np.sum(given["nll"]), plain, rtol=1e-12)


@pytest.mark.parametrize("architecture", FORMS)
def test_states_at_padding_and_at_source_tokens_have_no_gradient(architecture: str):
    objective, rows, _ = FORMS[architecture]
    made = objective(label_smoothing=0.1, z_loss=1e-3).make(VOCAB)
    prepared = made.prepare(KEY, batch_of(rows(True), 4))
    asked = np.asarray(prepared["target_weights"]) > 0
    params = {"h": jnp.ones((*asked.shape, 5)), "e": jax.random.normal(KEY, (40, 5))}
    gradient = jax.grad(lambda p: made.loss(fake, p, prepared, None).terms["target"].sum)(params)["h"]
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), asked)


@pytest.mark.parametrize("architecture", [*FORMS, "bidirectional"])
def test_packed_pairs_have_the_loss_of_pairs_apart(architecture: str):
    objective, rows, model = FORMS["decoder" if architecture == "bidirectional" else architecture]
    made = objective(**({"bidirectional": True} if architecture == "bidirectional" else {})).make(VOCAB)
    apply = make_apply(model.make())
    alone, together = (made.prepare(KEY, batch_of(rows(packed), 4)) for packed in (False, True))
    assert len(rows(True)) < len(rows(False))
    module = model.make()
    params = jax.jit(module.init)(KEY, inputs_of(alone))["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), unboxed(params))
    values = [jax.jit(lambda b: made.loss(apply, params, b, None))(b).terms["target"] for b in (alone, together)]
    np.testing.assert_allclose(values[0].sum, values[1].sum, rtol=1e-5)
    assert values[0].weight == values[1].weight == sum(map(len, TARGETS))


def unboxed(params: dict) -> dict:
    """Without the names of axes."""
    return jax.tree.map(
        lambda x: getattr(x, "value", x), params, is_leaf=lambda x: hasattr(x, "value") and hasattr(x, "names")
    )


def test_only_what_comes_before_the_first_target_of_a_text_is_seen_both_ways():
    # Two dialogues in a row; the first has a given mark (a 0) between two replies.
    rows = SequenceDataset(
        Side([[5, 6, 7, 8, 9, 1], [5, 6, 1]], 12, 0),
        mask=[[0, 0, 1, 0, 1, 1], [0, 1, 1]],
        vocab_size=40,
        packed=True,
    )
    out = ConditionalLM(bidirectional=True).make(VOCAB).prepare(KEY, batch_of(rows, 1))
    np.testing.assert_array_equal(out["bidirectional"][0], [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(out["target_weights"][0], [0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0])


def test_a_prompt_read_both_ways_gives_the_scores_that_training_sees():
    module = dataclasses.replace(GPT, stddev=0.3, num_layers=2).make()  # one layer alone would see no difference
    params = unboxed(jax.jit(module.init)(KEY, Inputs(jnp.ones((1, 3), jnp.int32)))["params"])
    apply = make_apply(module)
    prompts = jnp.asarray([[0, 0, 5, 6, 7], [8, 9, 5, 6, 1]])
    starts = jnp.asarray([2, 0])
    first, cache = jax.jit(
        lambda p: apply(params, method="prefill", prompt_ids=p, starts=starts, length=7, bidirectional=True)
    )(prompts)
    second, _ = apply(params, method="extend", ids=jnp.asarray([11, 12]), cache=cache)
    for row, (start, word) in enumerate(((2, 11), (0, 12))):
        ids = jnp.asarray([[*prompts[row, start:], word]])
        seen = jnp.arange(ids.shape[1])[None] < ids.shape[1] - 1
        logits = apply(params, method="lm_logits", hidden=apply(params, Inputs(ids, bidirectional=seen)))[0]
        np.testing.assert_allclose(first[row], logits[-2], atol=1e-5)
        np.testing.assert_allclose(second[row], logits[-1], atol=1e-5)
        one_way = apply(params, method="lm_logits", hidden=apply(params, Inputs(ids)))[0]
        assert np.abs(one_way[-2] - logits[-2]).max() > 1e-3


@pytest.mark.parametrize("architecture", FORMS)
def test_the_word_to_the_left_is_the_one_before_in_the_counted_text(architecture: str):
    objective, rows, _ = FORMS[architecture]
    made, batch = objective().make(VOCAB), batch_of(rows(), 4)
    targets = made.targets(batch, made.prepare(KEY, batch))
    asked = np.asarray(targets.weight) > 0
    found = [*zip(np.asarray(targets.left)[asked].tolist(), np.asarray(targets.token)[asked].tolist(), strict=True)]
    # Before a target stands an end mark: of the source, or of the target before.
    assert found == [pair for t in TARGETS for pair in zip([1, *t[:-1]], t, strict=True)]


def test_rows_of_the_wrong_form_are_refused_by_name():
    with pytest.raises(UserError, match="Seq2Seq needs data with 'target_ids'"):
        Seq2Seq().make(VOCAB).prepare(KEY, batch_of(texts(), 4))
    with pytest.raises(UserError, match="ConditionalLM needs data with 'target_mask'"):
        ConditionalLM().make(VOCAB).prepare(KEY, batch_of(pairs(), 4))
    with pytest.raises(UserError, match="needs a pad token"):
        Seq2Seq().make(Vocab(size=40, eos=1))


def test_both_sides_of_every_packed_row_fit_and_have_the_same_segments(rng: np.random.Generator):
    sources = [[7] * n for n in rng.integers(1, 20, 200)]
    targets = [[8] * n for n in rng.integers(1, 12, 200)]
    rows = SequenceDataset(Side(sources, 32, 0), Side(targets, 16, 0), vocab_size=40, packed=True)
    tables = rows.tables
    assert (tables["segment_ids"] > 0).sum() == sum(map(len, sources))
    assert (tables["target_segment_ids"] > 0).sum() == sum(map(len, targets))
    np.testing.assert_array_equal(tables["segment_ids"].max(axis=1), tables["target_segment_ids"].max(axis=1))
    found = sorted(
        ((row == n).sum(), (other == n).sum())
        for row, other in zip(tables["segment_ids"], tables["target_segment_ids"], strict=True)
        for n in range(1, row.max() + 1)
    )
    assert found == sorted((len(s), len(t)) for s, t in zip(sources, targets, strict=True))
    assert len(rows) < 100 and "200 texts packed into" in rows.warnings[-1].text
    inputs = rows.by_example(tables["input_ids"])
    assert [x.tolist() for x in inputs] == sources
