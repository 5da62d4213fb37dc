"""What holds for every family: packed rows, decoding, and sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fast

from bertgpt.layers.masks import window_mask
from bertgpt.layers.moe import Experts
from bertgpt.models import albert, electra, gpt, switch, t5
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import DISTILBERT_BASE, MINILM_L6_H384, BertConfig
from bertgpt.models.electra import ElectraConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.lm import shift_right
from bertgpt.types import Inputs, ModelConfig, UserError

SIZE = {"vocab_size": 50, "d_model": 16, "num_layers": 4, "num_heads": 2, "d_ff": 32, "max_len": 24}
ALBERT = BertConfig(**SIZE, embed_dim=8, shared_groups=2)
DISCRIMINATOR = BertConfig(**SIZE, embed_dim=8)
BERT = BertConfig(**SIZE)
GPT = GptConfig(**SIZE)
T5 = T5Config(**SIZE, num_decoder_layers=4, head_dim=6)
CASES = {
    "albert": ALBERT,
    "electra": ElectraConfig(DISCRIMINATOR, dataclasses.replace(DISCRIMINATOR, d_model=8, d_ff=16)),
    "gpt": GPT,
    "gpt-local": dataclasses.replace(GPT, local_window=3),
    "t5": T5,
    "t5-v1.1": dataclasses.replace(T5, gated=True, tied=False, activation="gelu_tanh"),
    "switch": dataclasses.replace(T5, experts=Experts(3, fixed_capacity=24)),
}
DECODERS = [name for name in CASES if name not in ("albert", "electra")]


def logits(module, ids, decoder_ids, *packing):
    """The scores that a family gives, for rows that may be packed: (segment_ids, positions)."""
    segments, positions = packing or (None, None)
    if isinstance(module, t5.T5):
        decoder = Inputs(decoder_ids, segments, positions)
        return module.lm_logits(module(Inputs(ids, segments, positions, decoder=decoder)))
    inputs = Inputs(ids, segments, positions)
    hidden = module(inputs)
    if isinstance(module, gpt.Gpt):
        return module.lm_logits(hidden)
    if isinstance(module, electra.Electra):
        return module.rtd_logits(hidden)[..., None] + module.mlm_logits(module.generate(inputs))
    return module.mlm_logits(hidden)


def init(config, seed: int = 0) -> tuple:
    """(params → scores, params), no parameter at a special value."""
    ids = jnp.zeros((1, 4), jnp.int32)
    boxed = nn.init(logits, config.make())({"params": jax.random.key(seed)}, ids, ids)["params"]
    leaves, tree = jax.tree.flatten(nn.unbox(boxed))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return scores(config), jax.tree.unflatten(tree, leaves)


def scores(config):
    return jax.jit(lambda params, *args: nn.apply(logits, config.make())({"params": params}, *args))


@pytest.mark.parametrize("name", fast(CASES, "gpt", "t5"))
def test_a_packed_document_gets_the_scores_it_has_alone(name, rng):
    apply, params = init(CASES[name])
    ids, decoder_ids = (jnp.asarray(rng.integers(0, 50, (1, 12))) for _ in range(2))
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.asarray([[*range(5), *range(4), 0, 0, 0]])
    packed = apply(params, ids, decoder_ids, segments, positions)
    for piece in (slice(0, 5), slice(5, 9)):
        alone = apply(params, ids[:, piece], decoder_ids[:, piece])
        np.testing.assert_allclose(packed[:, piece], alone, rtol=1e-4, atol=1e-5)


def token_table(params) -> jax.Array:
    return params["token"] if "token" in params else params["embeddings"]["token"]


def outputs(config, params, inputs: Inputs) -> jax.Array:
    """Hidden states, and for ELECTRA those of the generator beside them."""

    @jax.jit
    def states(params, inputs):
        apply = make_apply(config.make("float64"))
        own = [apply(params, inputs, method="generate")] if config.networks(params) else []
        return jnp.concatenate([apply(params, inputs), *own], axis=-1)

    return states(params, inputs)


@pytest.mark.parametrize("name", fast(["bert", *CASES], "bert", "gpt", "t5"))
def test_embeds_are_read_in_place_of_tokens(name, rng, float64):
    config = CASES.get(name, BERT)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init(config)[1])
    ids, segments = jnp.asarray(rng.integers(0, 50, (2, 9))), jnp.asarray([[1] * 9, [1] * 4 + [2] * 3 + [0] * 2])
    positions = jnp.asarray([[*range(9)], [*range(4), *range(3), 0, 0]])
    inputs = Inputs(ids, segments, positions)
    embedded = Inputs(None, segments, positions, embeds=token_table(params)[ids])
    expected = outputs(config, params, inputs._replace(decoder=inputs))
    np.testing.assert_allclose(outputs(config, params, embedded._replace(decoder=embedded)), expected, atol=1e-6)


@pytest.mark.parametrize("name", fast(["bert", *CASES], "bert", "gpt", "t5"))
def test_a_prefix_of_the_first_tokens_embeddings_gives_the_rest_the_same_states(name, rng, float64):
    config = CASES.get(name, BERT)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init(config)[1])
    ids, segments = jnp.asarray(rng.integers(0, 50, (2, 9))), jnp.asarray([[1] * 9, [1] * 7 + [0] * 2])
    positions = jnp.arange(9)[None] * (segments > 0)
    for given in ({}, {"segment_ids": segments, "positions": positions}):
        whole = Inputs(ids, **given)
        rest = {"segment_ids": segments[:, 3:], "positions": jnp.maximum(positions[:, 3:] - 3, 0)}
        split = Inputs(ids[:, 3:], **{key: rest[key] for key in given}, prefix=token_table(params)[ids[:, :3]])
        expected, found = (outputs(config, params, x._replace(decoder=x)) for x in (whole, split))
        real = np.asarray(segments[:, 3:] > 0) if given else np.ones((2, 6), bool)
        np.testing.assert_allclose(found[real], expected[:, 3:][real], atol=1e-6)


def test_a_prefix_does_not_go_with_packed_sequences_and_counts_as_length():
    apply, params = make_apply(GPT.make()), init(GPT)[1]
    prefix, segments = jnp.zeros((1, 2, 16)), jnp.asarray([[1, 1, 2]])
    with pytest.raises(UserError, match="prefix is not supported for packed sequences"):
        apply(params, Inputs(jnp.ones((1, 3), int), segments, prefix=prefix))
    with pytest.raises(UserError, match="a sequence of 25 tokens exceeds max_len=24"):
        apply(params, Inputs(jnp.ones((1, 23), int), prefix=prefix))
    with pytest.raises(UserError, match="give input_ids or embeds"):
        apply(params, Inputs(prefix=prefix))


def test_segment_ids_that_are_known_while_a_function_is_compiled_go_with_a_prefix():
    """The loop initialises a model inside a compiled function, on a batch of zeros."""
    inputs = Inputs(jnp.ones((1, 3), int), jnp.asarray([[1, 1, 0]]), prefix=jnp.zeros((1, 2, 16)))
    states = jax.eval_shape(lambda params: make_apply(GPT.make())(params, inputs), init(GPT)[1])
    assert states.shape == (1, 3, 16)


def test_an_output_that_a_model_lacks_is_named():
    with pytest.raises(UserError, match="Gpt has no tag_logits, which the objective asks for"):
        make_apply(GPT.make())({}, method="tag_logits", hidden=jnp.zeros((1, 2, 16)), num_labels=2)


@pytest.mark.parametrize("name", ["bert", *CASES])
def test_the_methods_of_a_model_are_those_that_its_config_declares(name):
    config = CASES.get(name, BERT)
    module = config.make()
    assert all(callable(getattr(module, method)) for method in config.outputs)
    assert module.task_methods <= config.outputs and isinstance(config, ModelConfig)


@pytest.mark.parametrize("name", fast(DECODERS, "gpt", "t5"))
def test_decoding_token_by_token_gives_the_scores_of_the_whole_sequence(name, rng):
    config = CASES[name]
    whole, params = init(config)
    apply = make_apply(config.make())
    lengths, new = [6, 3], 4
    prompts = [rng.integers(1, 50, n) for n in lengths]
    outputs = rng.integers(1, 50, (2, new))
    padded = np.stack([np.r_[np.zeros(6 - len(p), int), p] for p in prompts])
    starts = jnp.asarray([0, 3])
    first, cache = apply(params, method="prefill", prompt_ids=jnp.asarray(padded), starts=starts, length=6 + new)
    steps = [first]
    for column in range(new - 1):
        step, cache = apply(params, method="extend", ids=jnp.asarray(outputs[:, column]), cache=cache)
        steps.append(step)
    for row in range(2):
        if isinstance(config, T5Config):
            decoder = shift_right(jnp.asarray(outputs[row][None]), config.start_id)
            expected = whole(params, jnp.asarray(prompts[row])[None], decoder)[0]
        else:
            ids = jnp.asarray(np.r_[prompts[row], outputs[row]])[None]
            expected = whole(params, ids, ids)[0, lengths[row] - 1 : -1]
        np.testing.assert_allclose(np.stack([s[row] for s in steps]), expected, rtol=1e-4, atol=1e-5)


def test_a_gpt_token_sees_nothing_to_its_right(rng):
    apply, params = init(GPT)
    a = rng.integers(0, 50, (1, 8))
    b = a.copy()
    b[:, 5:] = (b[:, 5:] + 1) % 50
    first, second = (apply(params, jnp.asarray(ids), jnp.asarray(ids)) for ids in (a, b))
    np.testing.assert_array_equal(first[:, :5], second[:, :5])
    assert not np.allclose(first[:, 5:], second[:, 5:])


def test_a_local_window_is_a_band():
    expected = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert window_mask(4, 2)[0, 0].astype(int).tolist() == expected


def test_electra_shares_one_embedding(rng):
    _, params = init(CASES["electra"])
    assert set(params) == {"embeddings", "generator", "discriminator"}
    assert "embeddings" not in params["generator"] and "embeddings" not in params["discriminator"]


def test_albert_has_one_block_a_group():
    _, params = init(ALBERT)
    assert params["encoder"]["block"]["mlp"]["up"]["kernel"].shape == (2, 16, 32)


# -- sizes ------------------------------------------------------------------------------------------------------------


def count(config, *parts: str) -> int:
    """Parameters of the model, with the named methods' heads."""
    ids = jnp.zeros((1, 4), jnp.int32)

    def touch(module):
        hidden = module(Inputs(ids, decoder=Inputs(ids)))
        for part in parts:
            getattr(module, part)(*((hidden, jnp.ones_like(ids)) if part == "pool" else (hidden,)))

    shapes = jax.eval_shape(nn.init(touch, config.make()), {"params": jax.random.key(0)})["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


# Millions, as the papers print them: Lan et al. table 1, Clark et al. table 1 (14M, 110M, 335M), Brown et al. table
# 2.1, Raffel et al. §3.7, Fedus et al. (Switch-Base-128: 7.4 billion), Sanh et al. table 3.
PAPERS = [
    (albert.ALBERT_BASE, 12), (albert.ALBERT_LARGE, 18), (albert.ALBERT_XLARGE, 60), (albert.ALBERT_XXLARGE, 235),
    (electra.ELECTRA_SMALL.discriminator, 14), (electra.ELECTRA_BASE.discriminator, 110),
    (electra.ELECTRA_LARGE.discriminator, 335), (DISTILBERT_BASE, 66), (MINILM_L6_H384, 22.7),
    (gpt.GPT2_SMALL, 124), (gpt.GPT2_MEDIUM, 355), (gpt.GPT2_LARGE, 774), (gpt.GPT2_XL, 1558),
    (gpt.GPT3_125M, 125), (gpt.GPT3_350M, 350), (gpt.GPT3_760M, 760), (gpt.GPT3_1B3, 1300), (gpt.GPT3_2B7, 2700),
    (gpt.GPT3_6B7, 6700), (gpt.GPT3_13B, 13_000), (gpt.GPT3_175B, 175_000),
    (t5.T5_SMALL, 60), (t5.T5_BASE, 220), (t5.T5_LARGE, 740), (t5.T5_3B, 2850), (t5.T5_11B, 11_300),
    (switch.SWITCH_BASE_128, 7400),
]  # fmt: skip


@pytest.mark.parametrize("config, millions", PAPERS)
def test_sizes_are_the_papers(config, millions):
    pooled = isinstance(config, BertConfig) and config not in (
        electra.ELECTRA_SMALL.discriminator, electra.ELECTRA_BASE.discriminator, electra.ELECTRA_LARGE.discriminator,
    )  # fmt: skip
    assert count(config, *(["pool"] if pooled else [])) / 1e6 == pytest.approx(millions, rel=0.06)


# To the last parameter, as the released checkpoints have them.
RELEASED = [
    (albert.ALBERT_BASE, 11_683_584), (gpt.GPT2_SMALL, 124_439_808), (gpt.GPT2_XL, 1_557_611_200),
    (t5.T5_SMALL, 60_506_624), (t5.T5_11B, 11_307_321_344), (t5.T5_V1_1_BASE, 247_577_856),
    (t5.T5_V1_1_XXL, 11_135_332_352),
]  # fmt: skip


@pytest.mark.parametrize("config, number", RELEASED)
def test_sizes_are_the_released_ones(config, number):
    part = {BertConfig: "pool", GptConfig: "lm_logits", T5Config: "lm_logits"}[type(config)]
    assert count(config, part) == number


def test_impossible_shapes_are_refused_by_name():
    for make, message in [
        (lambda: GptConfig(d_model=10, num_heads=3), "Gpt: d_model=10 is not divisible by num_heads=3"),
        (lambda: GptConfig(num_layers=3, local_window=8), "num_layers=3 even"),
        (lambda: T5Config(num_layers=3, experts=Experts(4)), "T5: num_layers=3 is not divisible by experts.every=2"),
        (lambda: T5Config(gated=True, experts=Experts(4)), "experts have no gate"),
        (lambda: BertConfig(num_layers=4, shared_groups=3), "num_layers=4 is not divisible by shared_groups=3"),
        (lambda: BertConfig(embed_dim=8, mlm_head="plain"), "whose embed_dim=8 must then be d_model=768"),
        (lambda: ElectraConfig(DISCRIMINATOR, dataclasses.replace(DISCRIMINATOR, vocab_size=7)), "vocab_size=7"),
        (lambda: Experts(0), "Experts: num_experts=0"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
