"""BERT against a naive transcription in numpy float64, its numbers, and what each method gives."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from bertgpt.layers.linear import ENOUGH_ROWS
from bertgpt.models import bert
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.types import Inputs, UserError

CONFIG = dataclasses.replace(TINY, vocab_size=50, max_len=16)


def init(config: BertConfig, dtype: str = "float32", seed: int = 0) -> tuple:
    """(apply, params) with every head present and no parameter at a special value such as 0 or 1."""
    module = config.make(dtype)

    def everything(module, ids):
        hidden, segments = module(Inputs(ids)), jnp.ones_like(ids)
        return module.mlm_logits(hidden), module.nsp_logits(hidden, segments), module.class_logits(hidden, segments, 3)

    params = nn.unbox(nn.init(everything, module)({"params": jax.random.key(seed)}, jnp.zeros((1, 4), jnp.int32)))[
        "params"
    ]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return make_apply(module), jax.tree.unflatten(tree, leaves)


def numpy_bert(p: dict, c: BertConfig, ids: np.ndarray, segments: np.ndarray, positions: np.ndarray, types: np.ndarray):
    """One row [S] at a time, one head at a time, straight from the formulas."""

    def norm(x, q):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps) * q["scale"] + q["bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    act = {"relu": lambda x: np.maximum(x, 0), "gelu_tanh": gelu}[c.activation]
    x = (
        p["embeddings"]["token"][ids]
        + p["embeddings"]["position"][positions + c.first_position]
        + p["embeddings"]["type"][types]
    )
    x = norm(x, p["embeddings"]["norm"])
    for layer in range(c.num_layers):
        q = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["encoder"])

        def attend(y, q=q):
            heads = []
            for h in range(c.num_heads):
                Q, K, V = (
                    y @ q["attention"][n]["kernel"][:, h] + q["attention"][n]["bias"][h]
                    for n in ("query", "key", "value")
                )
                scores = Q @ K.T / np.sqrt(K.shape[-1])
                scores[segments[:, None] != segments[None, :]] = -np.inf
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ V)
            return np.concatenate(heads, -1) @ q["attention"]["out"]["kernel"] + q["attention"]["out"]["bias"]

        def feed(y, q=q):
            inner = act(y @ q["mlp"]["up"]["kernel"] + q["mlp"]["up"]["bias"])
            return inner @ q["mlp"]["down"]["kernel"] + q["mlp"]["down"]["bias"]

        for sublayer, n in ((attend, q["attention_norm"]), (feed, q["mlp_norm"])):
            x = norm(x + sublayer(x), n) if c.norm_position == "post" else x + sublayer(norm(x, n))
    x = norm(x, p["final_norm"]) if c.norm_position == "pre" else x
    head = p["mlm_head"]
    logits = (
        norm(act(x @ head["dense"]["kernel"] + head["dense"]["bias"]), head["norm"]) @ p["embeddings"]["token"].T
        + head["bias"]
    )
    pooled = np.tanh(x[0] @ p["pooler"]["kernel"] + p["pooler"]["bias"])
    return x, logits, pooled @ p["nsp_head"]["dense"]["kernel"] + p["nsp_head"]["dense"]["bias"]


@pytest.mark.parametrize("norm_position, activation", [("post", "gelu_tanh"), ("pre", "relu")])
def test_hidden_states_and_scores_equal_the_naive_transcription(norm_position, activation, float64, rng):
    config = dataclasses.replace(CONFIG, norm_position=norm_position, activation=activation)
    apply, params = init(config, "float64")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    ids, types = rng.integers(0, 50, (3, 16)), rng.integers(0, 2, (3, 16))
    segments = np.array([[1] * 16, [1] * 9 + [0] * 7, [1] * 4 + [2] * 6 + [3] * 3 + [0] * 3])
    positions = np.array([list(range(16)), [*range(9)] + [0] * 7, [*range(4), *range(6), *range(3), 0, 0, 0]])
    batch = [jnp.asarray(x) for x in (ids, segments, positions, types)]
    hidden = jax.jit(apply)(params, Inputs(*batch))
    logits = apply(params, method="mlm_logits", hidden=hidden)
    nsp = apply(params, method="nsp_logits", hidden=hidden, segment_ids=batch[1])
    numbers = jax.tree.map(np.asarray, params)
    for row in range(3):
        expected = numpy_bert(numbers, config, ids[row], segments[row], positions[row], types[row])
        for got, want in zip((hidden[row], logits[row], nsp[row]), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


def test_scan_and_unrolled_layers_are_the_same_function(rng):
    ids = jnp.asarray(rng.integers(0, 50, (2, 16)))
    apply, params = init(dataclasses.replace(CONFIG, scan=True))
    unrolled = make_apply(dataclasses.replace(CONFIG, scan=False).make())
    np.testing.assert_allclose(apply(params, Inputs(ids)), unrolled(params, Inputs(ids)), rtol=1e-5, atol=1e-6)


def test_what_a_document_says_does_not_reach_its_neighbours_in_the_row(rng):
    apply, params = init(CONFIG)
    segments = jnp.asarray([[1] * 6 + [2] * 6 + [0] * 4])
    a = rng.integers(0, 50, (1, 16))
    b = a.copy()
    b[:, 6:] = rng.integers(0, 50, (1, 10))
    first, second = (apply(params, Inputs(jnp.asarray(ids), segments))[:, :6] for ids in (a, b))
    np.testing.assert_array_equal(first, second)


def test_dropout_acts_only_with_a_key_and_is_a_function_of_it(rng):
    apply, params = init(CONFIG)
    ids = jnp.asarray(rng.integers(0, 50, (2, 16)))
    still, again = apply(params, Inputs(ids)), apply(params, Inputs(ids))
    np.testing.assert_array_equal(still, again)
    one, same, other = (apply(params, Inputs(ids), rng=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, still) and not np.array_equal(one, other)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_scores(rng):
    _, params = init(CONFIG, "bfloat16")
    exact, _ = init(CONFIG)
    ids = jnp.asarray(rng.integers(0, 50, (2, 16)))
    module = CONFIG.make("bfloat16")
    hidden = module.apply({"params": params}, Inputs(ids))
    logits = module.apply({"params": params}, hidden, method="mlm_logits")
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact(params, Inputs(ids)), atol=0.1)


def test_on_a_cpu_only_products_are_in_bfloat16(rng, monkeypatch):
    monkeypatch.setattr("bertgpt.layers.linear.cpu_has_bfloat16", lambda: True)
    apply, params = init(CONFIG, "bfloat16")
    exact, _ = init(CONFIG)
    ids = jnp.asarray(rng.integers(0, 50, (ENOUGH_ROWS // 16, 16)))
    hidden, wanted = apply(params, Inputs(ids)), exact(params, Inputs(ids))
    assert hidden.dtype == jnp.float32 and not np.array_equal(hidden, wanted)
    np.testing.assert_allclose(hidden, wanted, atol=0.1)
    np.testing.assert_array_equal(apply(params, Inputs(ids[:1])), exact(params, Inputs(ids[:1])))  # too few rows to pay


def parameters(config: BertConfig) -> int:
    def heads(module, ids):
        hidden = module(Inputs(ids))
        return module.mlm_logits(hidden), module.pool(hidden, jnp.ones_like(ids))

    shapes = jax.eval_shape(nn.init(heads, config.make()), {"params": jax.random.key(0)}, jnp.zeros((1, 8), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


# Without MLM head and NSP head, as transformers' BertModel counts them for the released checkpoints.
PUBLISHED = {
    "TINY": 4_385_920,
    "MINI": 11_170_560,
    "SMALL": 28_763_648,
    "MEDIUM": 41_373_184,
    "BASE": 109_482_240,
    "LARGE": 335_141_888,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str):
    config = getattr(bert, f"BERT_{name}")
    mlm_head = config.d_model**2 + 3 * config.d_model + config.vocab_size
    assert parameters(config) - mlm_head == PUBLISHED[name]


def test_roberta_is_numbers_on_bert():
    body = parameters(bert.ROBERTA_BASE) - (768 * 768 + 3 * 768 + 50_265)
    assert body == 124_645_632 - 768  # transformers' RobertaModel, less its one row of token types


def test_roberta_counts_positions_from_two(rng):
    config = dataclasses.replace(CONFIG, first_position=2, num_types=0)
    apply, params = init(config)
    assert params["embeddings"]["position"].shape[0] == 18 and "type" not in params["embeddings"]
    ids = jnp.asarray(rng.integers(0, 50, (1, 5)))
    before = apply(params, Inputs(ids))
    params["embeddings"]["position"] = params["embeddings"]["position"].at[:2].set(7.0).at[7:].set(7.0)
    np.testing.assert_array_equal(apply(params, Inputs(ids)), before)


def test_impossible_shapes_are_refused_by_name():
    for settings, message in [
        ({"d_model": 100, "num_heads": 12}, "Bert: d_model=100 is not divisible by num_heads=12"),
        ({"num_layers": 0}, "Bert: num_layers=0 must be at least 1"),
        ({"dropout": 1.0}, r"Bert: dropout=1.0 must lie in \[0, 1\)"),
    ]:
        with pytest.raises(UserError, match=message):
            BertConfig(**settings)
    apply, params = init(CONFIG)
    with pytest.raises(UserError, match="a sequence of 17 tokens exceeds max_len=16"):
        apply(params, Inputs(jnp.zeros((1, 17), jnp.int32)))


def test_the_pooled_vector_is_what_the_config_says(rng):
    hidden = jnp.asarray(rng.normal(size=(2, 5, 16)), jnp.float32)
    segments = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = {}
    for pooler in ("first", "mean"):
        apply, params = init(dataclasses.replace(CONFIG, pooler=pooler))
        assert "pooler" not in params
        pooled[pooler] = apply(params, method="pool", hidden=hidden, segment_ids=segments)
    np.testing.assert_array_equal(pooled["first"], hidden[:, 0])
    np.testing.assert_allclose(pooled["mean"], [hidden[0, :3].mean(0), hidden[1].mean(0)], rtol=1e-5)
