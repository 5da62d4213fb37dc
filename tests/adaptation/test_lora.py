"""LoRA: the products are what the formula says, the model starts as it is, and what is read is a plain model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from bertgpt.adaptation.freezing import count_parameters, distances, names_of, separate
from bertgpt.adaptation.init_from import weights_for
from bertgpt.adaptation.lora import Lora, init_lora, merge_lora, with_lora
from bertgpt.config import Experiment, Mesh, with_overrides
from bertgpt.convert.hub import import_model
from bertgpt.inference.export import convert
from bertgpt.inference.model import load
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.classify import Classify
from bertgpt.runs.checkpoint import Checkpoints, named_leaves
from bertgpt.sharding import make_mesh
from bertgpt.training.loop import train
from bertgpt.training.state import init_state
from bertgpt.types import Inputs, UserError, Vocab

IDS = jnp.asarray(np.random.default_rng(0).integers(5, 90, (2, 8)), jnp.int32)
BATCH = {name: jnp.ones((2, 8), jnp.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")}
BATCH |= {"input_ids": IDS, "label": jnp.asarray([0, 1])}
LORA = Lora(rank=2, alpha=6.0, targets=("query", "attention/out", "mlp/up"))


def adapted_params(model: BertConfig, lora: Lora, layout: Mesh | None = None, devices: int = 1) -> dict:
    """Parameters with A and B as training starts from."""
    objective, mesh = Classify(num_labels=2).make(Vocab(200)), make_mesh(layout or Mesh(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        state, _ = init_state(model.make(), objective, optax.adam(1.0), BATCH, mesh, 0, "all", lora)
    return state.params


@pytest.fixture(scope="module")
def params() -> dict:
    return adapted_params(TINY, LORA)


def noisy(params: dict) -> dict:
    """The same with B away from 0."""
    rng = np.random.default_rng(1)
    return params | {"lora": jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(x.dtype), params["lora"])}


def test_each_layer_gets_its_own_product_of_the_formula(params: dict):
    changed = noisy(params)
    merged = merge_lora(changed, LORA)
    for names in (("attention", "query"), ("attention", "out"), ("mlp", "up")):
        thin, kernel, found = changed["lora"]["encoder"], params["encoder"], merged["encoder"]
        for name in names:
            thin, kernel, found = thin[name], kernel[name], found[name]
        for layer in range(TINY.num_layers):
            w, a, b = (np.asarray(x[layer], np.float64) for x in (kernel["kernel"], thin["a"], thin["b"]))
            assert a.shape == (w.shape[0], 2) and b.shape == (2, *w.shape[1:])
            expected = w.reshape(len(w), -1) + 6.0 / 2 * a @ b.reshape(2, -1)
            np.testing.assert_allclose(found["kernel"][layer], expected.reshape(w.shape), rtol=1e-5, atol=1e-6)
    untouched = {name for name in names_of(merged) if not name.endswith(("query/kernel", "out/kernel", "up/kernel"))}
    assert all(named_leaves(merged)[name] is named_leaves(params)[name] for name in untouched)


def test_the_model_starts_exactly_as_it_is(params: dict):
    plain = {name: tree for name, tree in params.items() if name != "lora"}
    apply = make_apply(TINY.make())
    before, after = apply(plain, Inputs(IDS)), with_lora(apply, LORA)(params, Inputs(IDS))
    assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
    assert np.abs(with_lora(apply, LORA)(noisy(params), Inputs(IDS)) - before).max() > 0.1


def test_only_the_products_and_heads_are_trained(params: dict):
    trained, frozen = separate(params, "all")
    assert set(trained) == {"lora", "classifier", "pooler"} and set(frozen) == {"embeddings", "encoder"}
    d, f, layers, r = TINY.d_model, TINY.d_ff, TINY.num_layers, 2
    assert count_parameters(trained["lora"]) == layers * r * ((d + d) + (d + d) + (d + f))
    assert np.ravel(distances(params)["lora"]["encoder"]["mlp"]["up"]["a"]).tolist() == [2, 1]
    assert "encoder/mlp/up/bias" in names_of(separate(params, "bias")[0])


def test_the_products_are_sharded_as_their_kernels_are():
    params = adapted_params(TINY, LORA, Mesh(data=2, fsdp=2, tensor=2), 8)
    up, query = params["lora"]["encoder"]["mlp"]["up"], params["lora"]["encoder"]["attention"]["query"]
    assert up["a"].addressable_shards[0].data.shape == (2, 8, 2)  # [L, D / fsdp, r]
    assert up["b"].addressable_shards[0].data.shape == (2, 2, 16)  # [L, r, F / tensor]
    assert query["b"].addressable_shards[0].data.shape == (2, 2, 2, 4)  # [L, r, H / tensor, K]
    one = adapted_params(TINY, LORA)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), jax.device_get(params), jax.device_get(one))


def test_groups_that_share_a_block_share_its_product():
    params = adapted_params(dataclasses.replace(TINY, shared_groups=1), Lora(rank=3))
    assert params["lora"]["encoder"]["block"]["attention"]["value"]["a"].shape == (1, 16, 3)


def test_a_target_that_no_layer_has_is_refused_by_name(params: dict):
    with pytest.raises(UserError, match="no layer is called 'q_proj'; there are .*attention/query.*mlp/up"):
        init_lora(Lora(targets=("q_proj",)), params, jax.random.key(0))


@pytest.mark.parametrize(
    "wrong, message", [({"rank": 0}, "rank=0"), ({"alpha": 0.0}, "alpha=0.0"), ({"targets": ()}, "targets")]
)
def test_impossible_settings_are_refused_by_name(wrong: dict, message: str):
    with pytest.raises(UserError, match=message):
        Lora(**wrong)


@pytest.mark.slow
def test_a_run_resumes_and_is_read_and_exported_as_a_plain_model(
    tiny: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture
):
    experiment = dataclasses.replace(tiny, lora=LORA, evals=tiny.evals[:1], mesh=Mesh(data=2, fsdp=2, tensor=2))
    experiment = with_overrides(experiment, {"optim.lr": 0.1, "log_every": 1})
    train(experiment, tmp_path, stop_after=2)
    results = train(experiment, tmp_path)
    run = tmp_path / "tiny"
    counts = f"{results['trained_parameters']:,} of {results['parameters']:,} parameters trained"
    assert counts in capsys.readouterr().out
    saved = jax.device_put(Checkpoints(run).read("params"))
    assert {"a", "b"} == set(saved["lora"]["encoder"]["mlp"]["up"])
    apply = make_apply(TINY.make())
    wrapped = with_lora(apply, LORA)(saved, Inputs(IDS))

    # Loaded, on the host and on the device.
    merged = load(run, arrange="host").params
    assert "lora" not in merged and isinstance(merged["encoder"]["mlp"]["up"]["kernel"], np.ndarray)
    for params in (merged, load(run, arrange="training").params):
        np.testing.assert_allclose(apply(jax.device_put(params), Inputs(IDS)), wrapped, rtol=1e-5, atol=1e-6)
    assert weights_for(TINY, TINY, merged, run).keys() == merged.keys()
    assert not np.allclose(apply({**saved}, Inputs(IDS)), wrapped, atol=1e-3), "A and B have learnt nothing"

    # Exported, in Hugging Face's format, and read from there.
    convert(load(run, arrange="host"), tmp_path / "exported")
    exported = import_model(tmp_path / "exported")
    rows = exported.params["embeddings"]["token"].shape[0]
    assert int(IDS.max()) < rows
    module = dataclasses.replace(exported.config, scan=True).make()
    np.testing.assert_allclose(
        make_apply(module)(jax.device_put(exported.params), Inputs(IDS)), wrapped, rtol=1e-5, atol=1e-6
    )
