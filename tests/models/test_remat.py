"""Scanning a stack and recomputing activations change memory and arithmetic, never the numbers or the parameters."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fast
from test_families import BERT, CASES, GPT, init, logits

from bertgpt.config import from_json, to_json
from bertgpt.models.apply import make_apply
from bertgpt.overrides import parse_overrides
from bertgpt.ranges import REMAT_POLICIES
from bertgpt.training.memory import remat_advice
from bertgpt.training.throughput import count_matmul
from bertgpt.types import Inputs, UserError

ALL = {"bert": BERT, **CASES}


def changed(config, **changes):
    """The config with these fields, those of its networks if it has two."""
    parts = {"discriminator", "generator"} & {field.name for field in dataclasses.fields(config)}
    if parts:
        changes = {part: dataclasses.replace(vars(config)[part], **changes) for part in parts}
    return dataclasses.replace(config, **changes)


def loss_of(config, ids, decoder_ids):
    """params → a number, with dropout."""
    module = config.make("float64")

    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        return jnp.mean(jnp.square(nn.apply(logits, module)({"params": params}, ids, decoder_ids, rngs=rngs)))

    return loss


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", fast(ALL, "bert"))
def test_scan_and_remat_change_neither_losses_nor_gradients(name, scan, rng, float64):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init(ALL[name])[1])
    ids, decoder_ids = (jnp.asarray(rng.integers(0, 50, (2, 8))) for _ in range(2))

    def value_and_grad(scan, remat):
        return jax.jit(jax.value_and_grad(loss_of(changed(ALL[name], scan=scan, remat=remat), ids, decoder_ids)))(
            params
        )

    value, grads = value_and_grad(True, "none")
    for remat in REMAT_POLICIES[scan:]:
        other, other_grads = value_and_grad(scan, remat)
        np.testing.assert_allclose(other, value, rtol=1e-13)
        for got, want in zip(jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", fast(["bert", "gpt", "t5"], "bert"))
def test_policies_order_memory_and_arithmetic(name, scan):
    sizes = {"vocab_size": 100, "d_model": 128, "num_layers": 6, "num_heads": 2, "d_ff": 512, "max_len": 128}
    sizes |= {"num_decoder_layers": 6, "head_dim": 64} if name == "t5" else {}
    ids = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    inputs = Inputs(ids, ids, decoder=Inputs(ids, ids))
    memory, flops = {}, {}
    for remat in REMAT_POLICIES:
        module = dataclasses.replace(ALL[name], **sizes, scan=scan, remat=remat).make()
        apply = make_apply(module)
        params = jax.eval_shape(lambda inputs, m=module: nn.unbox(m.init(jax.random.key(0), inputs))["params"], inputs)

        def gradient(params, inputs, apply=apply):
            return jax.grad(lambda p: jnp.sum(apply(p, inputs, rng=jax.random.key(1))))(params)

        memory[remat] = jax.jit(gradient).lower(params, inputs).compile().memory_analysis().temp_size_in_bytes
        flops[remat] = count_matmul(gradient, params, inputs)
    assert flops["none"] < flops["dots"] <= flops["names"] < flops["full"] < 1.36 * flops["none"]
    # Where a block ends with a residual sum, the two store as much as each other.
    assert memory["names"] <= 1.02 * memory["dots"]
    assert memory["dots"] < 0.6 * memory["none"]
    assert memory["full"] < 0.9 * memory["names"]


def test_booleans_of_older_experiments_are_read_and_written_as_policies():
    for old, new in ((True, "full"), (False, "none")):
        config = dataclasses.replace(GPT, remat=old)
        assert config == dataclasses.replace(GPT, remat=new)
        assert from_json(to_json(GPT) | {"remat": old}) == config
        assert to_json(config)["remat"] == new
        assert parse_overrides(BERT, ["--remat", str(old)]).remat == new
    assert parse_overrides(BERT, ["--remat"]).remat == "full"
    assert parse_overrides(BERT, ["--remat", "names"]).remat == "names"
    with pytest.raises(UserError, match="--remat some: must be True or False or none or dots or names or full"):
        parse_overrides(BERT, ["--remat", "some"])


def test_advice_names_policies_that_take_less_memory(tiny):
    def advice(remat):
        return remat_advice(dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, remat=remat)))

    assert advice("none") == advice("dots") == ", or set model.remat to names or, for the least memory, full"
    assert advice("names") == ", or set model.remat to full (the least memory)"
    assert advice("full") == ""
    electra = remat_advice(dataclasses.replace(tiny, model=changed(CASES["electra"], remat="none")))
    assert electra.startswith(", or set model.discriminator.remat to names")
