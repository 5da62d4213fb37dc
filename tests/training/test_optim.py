"""AdamW against the update written out, and the schedules at their corners."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertgpt.config import Mesh
from bertgpt.models.bert import BertConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.sharding import make_mesh
from bertgpt.training.optim import Adafactor, AdamW, Lamb, decays, warmup_schedule
from bertgpt.training.state import init_state
from bertgpt.types import Inputs, UserError, Vocab

PARAMS = {
    "dense": {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([[0.5, 0.5]])},
    "norm": {"scale": jnp.ones(2)},
}


def run(config: AdamW, steps: int = 5) -> tuple[dict, dict]:
    """(ours, the update written out) after some steps with varying gradients."""
    tx, schedule = config.make(steps)
    params, state = PARAMS, tx.init(PARAMS)
    flat = {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([[0.5, 0.5]]), "scale": np.ones(2)}
    m = {name: np.zeros_like(v) for name, v in flat.items()}
    v = {name: np.zeros_like(x) for name, x in flat.items()}
    for t in range(steps):
        scale = 0.1 * (t + 1)
        gradients = {
            "kernel": np.array([[3.0, 1.0]]) * scale,
            "bias": np.array([[-2.0, 0.0]]) * scale,
            "scale": np.ones(2) * scale,
        }
        tree = {
            "dense": {n: jnp.asarray(gradients[n]) for n in ("kernel", "bias")},
            "norm": {"scale": jnp.asarray(gradients["scale"])},
        }
        updates, state = tx.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, g in gradients.items():
            g = g * min(1.0, config.clip_norm / norm) if config.clip_norm else g
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            c1, c2 = (1 - config.b1 ** (t + 1), 1 - config.b2 ** (t + 1)) if config.bias_correction else (1, 1)
            step = (m[name] / c1) / (np.sqrt(v[name] / c2) + config.eps)
            step += config.weight_decay * flat[name] * (name == "kernel")
            flat[name] = flat[name] - float(schedule(t)) * step
    return {
        "kernel": params["dense"]["kernel"],
        "bias": params["dense"]["bias"],
        "scale": params["norm"]["scale"],
    }, flat


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_the_update_is_the_one_written_out(bias_correction, clip_norm):
    config = AdamW(lr=0.1, warmup_steps=2, weight_decay=0.1, bias_correction=bias_correction, clip_norm=clip_norm)
    ours, written = run(config)
    for name in written:
        np.testing.assert_allclose(ours[name], written[name], rtol=1e-4, atol=1e-5)


def test_only_matrices_decay():
    assert decays(PARAMS) == {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False}}


def test_schedules_rise_and_fall_where_they_should():
    def at(decay: str, t: int, end: float = 0.0) -> float:
        return float(warmup_schedule(2.0, 10, 110, decay, end)(t))

    for decay in ("linear", "cosine", "constant", "rsqrt"):
        assert at(decay, 0) == pytest.approx(0.2) and at(decay, 9) == pytest.approx(2.0)
    assert at("linear", 60) == pytest.approx(1.0) and at("linear", 110) == 0.0
    assert at("cosine", 60) == pytest.approx(1.0) and at("cosine", 35) == pytest.approx(1 + np.cos(np.pi / 4))
    assert at("constant", 1000) == 2.0
    assert at("rsqrt", 39) == pytest.approx(1.0)
    assert at("linear", 110, 0.1) == pytest.approx(0.2) and at("cosine", 110, 0.1) == pytest.approx(0.2)


def test_without_warmup_the_first_update_has_the_peak():
    assert float(warmup_schedule(2.0, 0, 100, "linear", 0.0)(0)) == 2.0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"b2": 1.0}, r"b2=1.0 must lie in \[0, 1\)"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        AdamW(**settings)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps=10 exceeds steps=5"):
        AdamW(warmup_steps=10).make(5)


def test_lamb_scales_each_matrix_step_to_the_matrix_and_leaves_biases_to_adam():
    tx, schedule = Lamb(lr=0.1, weight_decay=0.01, clip_norm=None, decay="constant").make(10)
    gradients = {
        "dense": {"kernel": jnp.asarray([[3.0, 1.0]]), "bias": jnp.asarray([[-2.0, 0.5]])},
        "norm": {"scale": jnp.ones(2)},
    }
    updates, _ = tx.update(gradients, tx.init(PARAMS), PARAMS)
    # The first corrected Adam step is the sign of the gradient.
    kernel = np.array([[1.0, -2.0]])
    step = np.array([[1.0, 1.0]]) + 0.01 * kernel
    expected = -0.1 * step * np.linalg.norm(kernel) / np.linalg.norm(step)
    np.testing.assert_allclose(updates["dense"]["kernel"], expected, rtol=1e-4)
    np.testing.assert_allclose(updates["dense"]["bias"], [[0.1, -0.1]], rtol=1e-4)
    assert float(schedule(5)) == pytest.approx(0.1)


def test_adafactor_steps_are_relative_to_the_matrix_and_its_rate_is_t5s():
    tx, schedule = Adafactor().make(10**6)
    for t, rate in ((0, 1e-2), (9_999, 1e-2), (39_999, 5e-3)):
        assert float(schedule(t)) == pytest.approx(rate, rel=1e-4)
    params = {"kernel": jnp.full((4, 4), 0.5)}
    updates, _ = tx.update({"kernel": jnp.full((4, 4), 7.0)}, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -1e-2 * 0.5, rtol=1e-4)  # g/RMS(g) is 1, times RMS(matrix)


def test_adafactor_keeps_rows_and_columns_of_sharded_matrices():
    config = BertConfig(vocab_size=256, d_model=128, num_layers=1, num_heads=2, d_ff=256, max_len=8)
    batch = {name: jnp.ones((8, 8), jnp.int32) for name in ("input_ids", "segment_ids", "positions", "type_ids")}
    objective, mesh = MaskedLM().make(Vocab(256, mask=4)), make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        state, _ = init_state(config.make(), objective, Adafactor().make(10)[0], batch, mesh, seed=0)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt))
    assert kept < 0.05 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_adafactor_of_a_stack_is_that_of_each_layer_and_matrix_alone(rng: np.random.Generator):
    shapes = {"query": (2, 160, 4, 40), "out": (2, 160, 160), "norm": (2, 160)}
    names = {"query": "kernel", "out": "kernel", "norm": "scale"}

    def tree(scale: float) -> dict:
        values = {name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        values = {
            name: value * jnp.asarray([1.0, 30.0]).reshape(2, *[1] * (value.ndim - 1)) for name, value in values.items()
        }
        return {"encoder": {name: {names[name]: value} for name, value in values.items()}}

    def alone(stacked: dict) -> dict:
        """A parameter for each layer, matrices of two axes."""
        return {
            f"{name}{layer}": value[names[name]][layer].reshape(*value[names[name]].shape[1:2], -1).squeeze()
            for name, value in stacked["encoder"].items()
            for layer in range(2)
        }

    tx, schedule = Adafactor(warmup_steps=1).make(10)
    theirs = optax.adafactor(schedule)
    params = tree(0.02)
    state, reference = tx.init(params), theirs.init(alone(params))
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (1,), (2, 160)}
    for _ in range(3):
        grads = tree(1.0)
        updates, state = tx.update(grads, state, params)
        expected, reference = theirs.update(alone(grads), reference, alone(params))
        chex.assert_trees_all_close(alone(updates), expected, rtol=2e-6)
        params = optax.apply_updates(params, updates)


def test_adafactor_of_t5_base_keeps_under_one_percent_of_the_numbers():
    module = T5Config(
        vocab_size=32128, d_model=768, num_layers=12, num_decoder_layers=12, num_heads=12, head_dim=64, d_ff=3072
    ).make()
    inputs = Inputs(*[jnp.ones((1, 4), jnp.int32)] * 3)
    both = inputs._replace(decoder=inputs)
    params = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), both)["params"]))
    state = jax.eval_shape(Adafactor().make(10)[0].init, params)
    kept, parameters = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state, params))
    assert parameters > 2e8 and kept < 0.01 * parameters


def test_a_decay_may_end_before_the_run_does():
    _, schedule = AdamW(lr=1.0, warmup_steps=10, decay="cosine", end_fraction=0.1, decay_steps=60).make(100)
    assert float(schedule(35)) == pytest.approx(0.55) and float(schedule(60)) == float(schedule(99)) == pytest.approx(
        0.1
    )


LAYERED = {
    "embeddings": {"token": np.full((2, 2), 0.3, np.float32)},
    "encoder": {"mlp": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 2, 2)}},
    "classifier": {"kernel": np.asarray([0.5, -0.5], np.float32)},
}


def layered_gradients(t: int) -> dict:
    rng = np.random.default_rng(t)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), LAYERED)


def updated(config: AdamW, steps: int) -> dict:
    """Parameters after some updates, each as (layer, array): one array a layer."""
    tx, _ = config.make(steps)
    params, state = LAYERED, tx.init(LAYERED)
    for t in range(steps):
        updates, state = tx.update(layered_gradients(t), state, params)
        params = optax.apply_updates(params, updates)
    return layer_by_layer(params)


def layer_by_layer(tree: dict) -> dict[str, np.ndarray]:
    stacked = {f"layer {i + 1}": layer for i, layer in enumerate(tree["encoder"]["mlp"]["kernel"])}
    return {"embeddings": tree["embeddings"]["token"], **stacked, "head": tree["classifier"]["kernel"]}


def written_out(config: AdamW, steps: int, rates: dict[str, float], starts: dict[str, int]) -> dict[str, np.ndarray]:
    """AdamW in float64, an optimiser for each layer with its own rate, which begins at its own update."""
    _, schedule = config.make(steps)
    values = {name: np.asarray(x, np.float64) for name, x in layer_by_layer(LAYERED).items()}
    m, v = ({name: np.zeros_like(x) for name, x in values.items()} for _ in range(2))
    for t in range(steps):
        gradients = {n: np.asarray(g, np.float64) for n, g in layer_by_layer(layered_gradients(t)).items()}
        gradients = {n: g for n, g in gradients.items() if t >= starts[n]}
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, g in gradients.items():
            g = g * min(1.0, config.clip_norm / norm)
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            age = t - starts[name] + 1
            step = m[name] / (1 - config.b1**age) / (np.sqrt(v[name] / (1 - config.b2**age)) + config.eps)
            step += config.weight_decay * values[name]
            values[name] = values[name] - float(schedule(t)) * rates[name] * step
    return values


DISTANCES = {"head": 0, "layer 3": 1, "layer 2": 2, "layer 1": 3, "embeddings": 4}


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_layers_have_rates_and_starts_of_their_own(every: int, decay: float):
    config = AdamW(
        lr=0.1, decay="constant", weight_decay=0.1, bias_correction=True, layer_decay=decay, unfreeze_every=every
    )
    expected = written_out(
        *(config, 9),
        rates={name: decay**d for name, d in DISTANCES.items()},
        starts={name: every * max(d - 1, 0) for name, d in DISTANCES.items()},
    )
    for name, value in updated(config, 9).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_layers_that_are_not_unfrozen_yet_keep_their_bits():
    config = AdamW(lr=0.1, weight_decay=0.1, bias_correction=True, unfreeze_every=2)
    before, after = layer_by_layer(LAYERED), updated(config, 4)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"head", "layer 3", "layer 2"}


def test_layer_decay_of_one_layer_is_the_factor_of_beits_code():
    # BEiT, optim_factory.py: decay ** (num_layers + 1 - id), embeddings 0, layers 1 … L, head L + 1.
    one = layer_by_layer(LAYERED)
    plain, scaled = (updated(AdamW(lr=0.1, clip_norm=None, layer_decay=decay), 1) for decay in (1.0, 0.65))
    for number, name in enumerate(("embeddings", "layer 1", "layer 2", "layer 3", "head")):
        ratio = (scaled[name] - one[name]) / (plain[name] - one[name])
        np.testing.assert_allclose(ratio, 0.65 ** (3 + 1 - number), rtol=1e-4)


def test_unfreezing_without_bias_correction_is_refused():
    with pytest.raises(UserError, match="unfreeze_every needs bias_correction=True"):
        AdamW(unfreeze_every=5)
