"""AdamW against the update written out, and the schedules at their corners."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertgpt.config import UserError
from bertgpt.optim import AdamW, decays, warmup_schedule

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
