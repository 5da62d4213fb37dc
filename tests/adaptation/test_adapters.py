"""Adapters (Houlsby et al. 2019): after each sublayer, nearly the identity, trained with norms and head alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import TINY

from bertgpt.adaptation.init_from import check_same_function
from bertgpt.config import Experiment, with_overrides
from bertgpt.inference.export import convert
from bertgpt.inference.model import load
from bertgpt.layers.block import Adapter, Block
from bertgpt.runs.checkpoint import Checkpoints, named_leaves
from bertgpt.training.loop import train
from bertgpt.types import UserError


def test_an_adapter_is_the_formula_in_float64(float64, rng: np.random.Generator):
    x, module = rng.normal(size=(2, 3, 4)), Adapter(width=2)
    shapes = {"down": (4, 2), "up": (2, 4)}
    params = {
        n: {"kernel": jnp.asarray(rng.normal(size=s)), "bias": jnp.asarray(rng.normal(size=s[1]))}
        for n, s in shapes.items()
    }
    inner = x @ params["down"]["kernel"] + params["down"]["bias"]
    gelu = inner * 0.5 * (1 + scipy.special.erf(inner / np.sqrt(2)))
    expected = x + np.asarray(gelu) @ params["up"]["kernel"] + params["up"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, jnp.asarray(x)), expected, rtol=1e-12)


@pytest.mark.parametrize("position", ["post", "pre"])
def test_a_block_with_new_adapters_is_nearly_the_block_without(position: str, rng: np.random.Generator):
    init = lambda key, shape, dtype=jnp.float32: 0.1 * jax.random.normal(key, tuple(shape), dtype)  # noqa: E731
    x = jnp.asarray(rng.normal(size=(2, 5, 16)), jnp.float32)
    with_adapters, without = (Block(2, 32, "gelu", position, 1e-6, 0.0, 0.0, init, None, width) for width in (4, None))
    import flax.linen as nn

    params = nn.unbox(with_adapters.init(jax.random.key(0), x)["params"])
    assert {name for name in params if "adapter" in name} == {"attention_adapter", "mlp_adapter"}
    assert float(jnp.abs(params["mlp_adapter"]["up"]["kernel"]).max()) <= 2e-3
    plain = {name: tree for name, tree in params.items() if "adapter" not in name}
    before, after = without.apply({"params": plain}, x)[0], with_adapters.apply({"params": params}, x)[0]
    assert 0 < float(jnp.abs(before - after).max()) < 1e-3


@pytest.mark.slow
def test_adapters_alone_are_trained_with_norms_and_head_and_are_not_exported(tiny: Experiment, tmp_path: Path):
    adapted = with_overrides(
        tiny, {"evals": (), "model.adapter_dim": 4, "trainable": "adapter", "optim.warmup_steps": 0}
    )
    train(adapted, tmp_path, stop_after=1)
    before = named_leaves(Checkpoints(tmp_path / "tiny").read("params"))
    results = train(adapted, tmp_path)
    after = named_leaves(Checkpoints(tmp_path / "tiny").read("params"))
    for name, leaf in after.items():
        trained = any(part in name for part in ("adapter", "norm", "mlm_head", "nsp_head", "pooler"))
        assert np.array_equal(leaf, before[name]) is not trained, name
    assert results["trained_parameters"] < results["parameters"]
    with pytest.raises(UserError, match="adapter_dim=4: adapters have no counterpart there; LoRA"):
        convert(load(tmp_path / "tiny", arrange="host"), tmp_path / "exported")


def test_a_plain_model_may_get_adapters_but_one_with_adapters_may_not_lose_them():
    adapted = dataclasses.replace(TINY, adapter_dim=4)
    check_same_function(adapted, TINY, "plain")
    with pytest.raises(UserError, match="model.adapter_dim=4 there but None here"):
        check_same_function(TINY, adapted, "adapted")


def test_an_adapter_without_width_is_refused():
    with pytest.raises(UserError, match="adapter_dim=0 must be at least 1"):
        dataclasses.replace(TINY, adapter_dim=0)
