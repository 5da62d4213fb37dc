"""Top-1 routing on tensors written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.layers.moe import Experts, SwitchFeedForward, capacity_of, expert_of, jitter, route

# Four tokens choose experts 0, 0, 1, 0 of two.
LOGITS = jnp.asarray([[[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 0.0]]])
ALL = jnp.ones((1, 4), bool)


def test_tokens_go_to_their_best_expert_in_order_until_it_is_full():
    routing = route(LOGITS, ALL, capacity=2)
    #                    expert 0        expert 1
    expected = [
        [[1, 0], [0, 0]],
        [[0, 1], [0, 0]],
        [[0, 0], [1, 0]],
        [[0, 0], [0, 0]],  # the third for expert 0 finds it full
    ]
    assert routing.dispatch[0].astype(int).tolist() == expected
    assert expert_of(routing)[0].tolist() == [0, 0, 1, -1]
    assert routing.dropped.tolist() == [0.25]


def test_gate_losses_and_load_are_their_formulas():
    routing = route(LOGITS, ALL, capacity=4)
    p = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum(-1, keepdims=True)
    np.testing.assert_allclose(routing.probability[0], p.max(-1), rtol=1e-6)
    np.testing.assert_allclose(routing.load[0], [0.75, 0.25])
    np.testing.assert_allclose(routing.load_balance[0], 2 * (0.75 * p[:, 0].mean() + 0.25 * p[:, 1].mean()), rtol=1e-6)
    np.testing.assert_allclose(routing.z[0], np.mean(np.log(np.exp(LOGITS[0]).sum(-1)) ** 2), rtol=1e-6)


def test_the_balance_loss_is_one_when_balanced_and_pulls_load_apart_only_through_the_probabilities():
    even = jnp.asarray([[[5.0, 0.0], [0.0, 5.0]]])
    assert route(even, jnp.ones((1, 2), bool), 1).load_balance[0] == pytest.approx(1.0)
    gradient = jax.grad(lambda x: route(x, ALL, 4).load_balance[0])(LOGITS)
    assert (gradient[0, :, 0] > 0).all() and (gradient[0, :, 1] < 0).all()  # less for the crowded expert 0


def test_padding_takes_no_capacity_and_counts_nowhere():
    real = jnp.asarray([[False, True, True, True]])
    routing = route(LOGITS, real, capacity=2)
    assert expert_of(routing)[0].tolist() == [-1, 0, 1, 0]
    np.testing.assert_allclose(routing.load[0], [2 / 3, 1 / 3], rtol=1e-6)
    assert routing.dropped.tolist() == [0.0]


def test_a_row_is_routed_alike_however_far_it_is_padded(rng):
    x = jnp.asarray(rng.normal(size=(1, 6, 3)), jnp.float32)
    module = layer(eval_capacity=1.0)
    params = nn.unbox(module.init({"params": jax.random.key(0)}, x, jnp.ones((1, 6), bool)))["params"]
    alone = module.apply({"params": params}, x, jnp.ones((1, 6), bool))
    assert (jnp.abs(alone).sum(-1) == 0).any()  # some token found its expert full
    padded = jnp.concatenate([x, jnp.ones((1, 10, 3))], axis=1)
    real = jnp.arange(16)[None] < 6
    np.testing.assert_allclose(module.apply({"params": params}, padded, real)[:, :6], alone, rtol=1e-6)


def test_rows_are_groups_of_their_own():
    both = route(jnp.concatenate([LOGITS, LOGITS[:, ::-1]]), jnp.ones((2, 4), bool), 2)
    assert expert_of(both).tolist() == [[0, 0, 1, -1], [0, 1, 0, -1]]


@pytest.mark.parametrize("tokens, experts, factor, capacity", [(8, 4, 1.0, 2), (8, 4, 1.25, 3), (1, 8, 1.0, 1)])
def test_capacity_is_the_paper_formula(tokens, experts, factor, capacity):
    assert capacity_of(tokens, experts, factor) == capacity


def layer(**settings) -> SwitchFeedForward:
    return SwitchFeedForward(Experts(2, **settings), 6, "relu", nn.initializers.normal(1.0))


def test_each_token_gets_its_expert_times_the_gate_and_dropped_ones_nothing(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 3)), jnp.float32)
    module = layer(fixed_capacity=1)
    params = nn.unbox(module.init({"params": jax.random.key(0)}, x, ALL))["params"]
    out, state = module.apply({"params": params}, x, ALL, mutable=["router"])
    routing = route(x @ params["router"], ALL, 1)
    chosen = expert_of(routing)[0].tolist()
    assert -1 in chosen
    for s, e in enumerate(chosen):
        expected = np.zeros(3)
        if e >= 0:
            inner = np.maximum(x[0, s] @ params["up"][e], 0)
            expected = routing.probability[0, s] * (inner @ params["down"][e])
        np.testing.assert_allclose(out[0, s], expected, rtol=1e-5, atol=1e-6)
    assert set(state["router"]) == {"load_balance", "z", "load", "dropped"}


def test_the_router_alone_computes_in_float32(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 3)), jnp.bfloat16)
    module = layer()
    params = nn.unbox(module.init({"params": jax.random.key(0)}, x, ALL))["params"]
    out, state = module.apply({"params": params}, x, ALL, mutable=["router"])
    assert out.dtype == jnp.bfloat16 and state["router"]["load_balance"][0].dtype == jnp.float32


def test_training_has_its_own_capacity_jitter_and_dropout(rng):
    x = jnp.ones((1, 8, 3))
    module = layer(train_capacity=0.5, eval_capacity=2.0, jitter=0.0, dropout=0.0)
    real = jnp.ones((1, 8), bool)
    params = nn.unbox(module.init({"params": jax.random.key(0)}, x, real))["params"]
    dropped = {}
    for name, rngs in (("train", {"dropout": jax.random.key(1)}), ("eval", None)):
        _, state = module.apply({"params": params}, x, real, mutable=["router"], rngs=rngs)
        dropped[name] = float(state["router"]["dropped"][0][0])
    assert dropped == {"train": 0.75, "eval": 0.0}  # all eight tokens choose one expert, of capacity 2 or 8
    noise = jitter(jax.random.key(0), jnp.ones(10_000), 0.01)
    assert 0.99 <= noise.min() < 0.9901 and 1.0099 < noise.max() <= 1.01
