"""Several objectives under names of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_span
from bertgpt.experiments.pretrain.mini_ul2 import DENOISERS
from test_lm import VOCAB, packed

from bertgpt.objectives.lm import CausalLM, PrefixLM
from bertgpt.objectives.multitask import Multitask, Named
from bertgpt.objectives.router import router_loss
from bertgpt.types import Loss, Sum, UserError


def apply(params: jax.Array, inputs=None, *, method: str = "__call__", rng=None, hidden=None) -> jax.Array:
    return inputs.input_ids[..., None] * params if method == "__call__" else hidden * np.ones(40)


def test_the_loss_is_the_weighted_sum_of_the_parts_losses():
    batch = {name: jnp.repeat(array, 4, axis=0) for name, array in packed([9, 5], 14).items()}
    both = Multitask((Named("clm", CausalLM(), 2.0), Named("prefix", PrefixLM(), 0.5))).make(VOCAB)
    prepared = both.prepare(jax.random.key(0), batch)
    value = both.loss(apply, jnp.ones(()), prepared, None)
    assert set(value.terms) == {"clm/lm", "prefix/prefix"}
    assert {"clm/lm_loss", "prefix/prefix_accuracy"} <= set(value.metrics)
    alone = CausalLM().make(VOCAB)
    expected = alone.loss(apply, jnp.ones(()), alone.prepare(jax.random.key(0), batch), None)
    assert value.terms["clm/lm"].sum == pytest.approx(2.0 * float(expected.terms["lm"].sum))
    assert value.metrics["clm/lm_loss"].sum == pytest.approx(float(expected.metrics["lm_loss"].sum))


def test_shares_give_each_part_rows_of_its_own():
    batch = {name: jnp.repeat(array, 8, axis=0) for name, array in packed([9, 5], 14).items()}
    batch["input_ids"] = batch["input_ids"] + jnp.arange(8)[:, None]
    parts = Multitask((Named("a", CausalLM(), share=0.25), Named("b", CausalLM(), share=0.75))).make(VOCAB)
    prepared = parts.prepare(jax.random.key(0), batch)
    rows = np.concatenate([prepared["a/input_ids"], prepared["b/input_ids"]])
    assert len(prepared["a/input_ids"]) == 2
    np.testing.assert_array_equal(rows, batch["input_ids"])


@pytest.mark.slow
def test_a_mixture_of_denoisers_loses_no_token():
    """UL2: each sequence is restored from the input and the target of its denoiser."""
    texts = np.random.default_rng(0).integers(2, 900, (8, 64)).tolist()  # with [UNK]
    prepare = jax.jit(DENOISERS.make(test_span.VOCAB).prepare)
    out = jax.device_get(prepare(jax.random.key(0), test_span.batch_of([[text] for text in texts], 64)))
    restored = []
    for name in ("short", "long"):
        assert not out[f"{name}/span_cut"].any() and not out[f"{name}/span_input_cut"].any()
        for source, target in zip(out[f"{name}/input_ids"].tolist(), out[f"{name}/span_labels"].tolist(), strict=True):
            assert source[-1] == target[-1] == test_span.VOCAB.eos and target[0] == test_span.SENTINELS[0]
            restored.append(test_span.restore(source[:-1], target[:-1])[0])
    for row in range(2):
        read = out["prefix/input_ids"][row][out["prefix/segment_ids"][row] > 0]
        predicted = out["prefix/prefix_labels"][row][out["prefix/prefix_weights"][row] > 0]
        assert len(read) and len(predicted)
        restored.append([*read.tolist(), *predicted.tolist()])
    assert restored == texts


def test_unusable_parts_are_named():
    for parts, message in (
        ((Named("a", CausalLM(), weight=0.0),), "the weight of 'a' is 0.0"),
        ((Named("a", CausalLM()), Named("a", CausalLM())), "different names"),
        ((Named("a", CausalLM(), share=0.5), Named("b", CausalLM(), share=0.4)), "add up to 1"),
        ((), "different names"),
    ):
        with pytest.raises(UserError, match=message):
            Multitask(parts)
    uneven = Multitask((Named("a", CausalLM(), share=0.3), Named("b", CausalLM(), share=0.7)))
    with pytest.raises(UserError, match="the share of 'a', 0.3 of batch_size=8, is not a whole number of examples"):
        uneven.make(VOCAB).prepare(jax.random.key(0), {"input_ids": jnp.zeros((8, 4), jnp.int32)})


def test_router_numbers_come_layer_by_layer_and_rows_of_padding_do_not_count():
    load = np.array([[[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]], [[0.2, 0.8], [0.4, 0.6], [0.0, 0.0]]])  # [layers, B, E]
    balance, dropped = np.array([[2.0, 1.0, 9.0], [1.5, 1.1, 9.0]]), np.array([[0.5, 0.0, 9.0], [0.1, 0.3, 9.0]])
    auxiliary = {"encoder": {"block_1": {"mlp": {"load": (load,), "load_balance": (balance,), "dropped": (dropped,)}}}}
    value = router_loss(auxiliary, 0.01)
    assert value.terms["load_balance/encoder_0"] == Sum(pytest.approx(0.03), 2)
    assert value.terms["load_balance/encoder_1"] == Sum(pytest.approx(0.026), 2)
    np.testing.assert_allclose(value.metrics["router_load/encoder_1"].sum, [0.6, 1.4])
    assert value.metrics["router_dropped/encoder_1"] == Sum(pytest.approx(0.4), 2)
    assert router_loss({}, 0.01) == Loss({}, {})
