"""What is trained and what stays as it is, bit for bit; and how far from the head every parameter lies."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from bertgpt.adaptation.freezing import distances, merge, names_of, separate
from bertgpt.config import Experiment, Mesh, with_overrides
from bertgpt.layers.moe import Experts
from bertgpt.models.apply import make_apply
from bertgpt.models.electra import ElectraConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.core import Objective
from bertgpt.runs.checkpoint import Checkpoints, named_leaves
from bertgpt.sharding import make_mesh
from bertgpt.training.loop import train
from bertgpt.training.state import init_state
from bertgpt.training.step import loss_and_grads
from bertgpt.training.throughput import count_matmul
from bertgpt.types import Inputs, Loss, Sum, UserError, Vocab

SIZES = {"vocab_size": 200, "d_model": 16, "num_layers": 4, "num_heads": 4, "d_ff": 32, "scan": True}
IDS = jnp.ones((2, 8), jnp.int32)
BATCH = {name: IDS for name in ("input_ids", "segment_ids", "positions", "type_ids")}
BATCH["label"] = jnp.asarray([0, 1])


def params_of(config: Any, *calls: tuple) -> dict:
    """Parameters for these calls (method, arguments) of the model."""
    module = config.make()

    def run(module: Any) -> None:
        for method, *args in calls:
            getattr(module, method)(*args)

    import flax.linen as nn

    shapes = jax.eval_shape(lambda: nn.unbox(nn.init(run, module)({"params": jax.random.key(0)})["params"]))
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


INPUTS = Inputs(IDS, decoder=Inputs(IDS))
HIDDEN = jnp.zeros((2, 8, 16))
CLASSIFY = (("__call__", INPUTS), ("class_logits", HIDDEN, IDS, 2))
BERT = dataclasses.replace(TINY, num_layers=4)


def distance(params: dict, name: str) -> list[int]:
    return np.ravel(named_leaves(distances(params))[name]).tolist()


def test_distances_of_bert_count_from_the_head_down_to_the_embeddings():
    params = params_of(dataclasses.replace(BERT, norm_position="pre", embed_dim=8), *CLASSIFY)
    assert distance(params, "classifier/dense/kernel") == distance(params, "pooler/kernel") == [0]
    assert distance(params, "final_norm/scale") == [1]
    assert distance(params, "encoder/mlp/up/kernel") == distance(params, "encoder/mlp_norm/bias") == [4, 3, 2, 1]
    for name in ("embedding_projection/kernel", "embeddings/token", "embeddings/norm/scale"):
        assert distance(params, name) == [5]


def test_layers_that_share_parameters_count_as_one():
    one, two = (params_of(dataclasses.replace(BERT, shared_groups=groups), *CLASSIFY) for groups in (1, 2))
    assert distance(one, "encoder/block/mlp/up/kernel") == [1] and distance(one, "embeddings/token") == [2]
    assert distance(two, "encoder/block/mlp/up/kernel") == [2, 1] and distance(two, "embeddings/token") == [3]


def test_both_stacks_of_t5_count_from_their_own_top_and_groups_with_experts_in_turn():
    config = T5Config(**SIZES, num_decoder_layers=2, head_dim=4, tied=False)
    calls = (("__call__", INPUTS), ("lm_logits", HIDDEN))
    params = params_of(config, *calls)
    assert distance(params, "encoder/mlp/up/kernel") == [4, 3, 2, 1]
    assert distance(params, "decoder/cross_attention/query/kernel") == [2, 1]
    assert distance(params, "token") == distance(params, "encoder_bias/table") == [5]
    assert distance(params, "lm_head") == [0] and distance(params, "decoder_norm/scale") == [1]
    sparse = params_of(dataclasses.replace(config, experts=Experts(2, every=2)), *calls)
    assert distance(sparse, "encoder/block_0/attention/query/kernel") == [4, 2]
    assert distance(sparse, "encoder/block_1/mlp/up") == [3, 1]


def test_dense_and_local_blocks_of_gpt3_take_turns():
    params = params_of(GptConfig(**SIZES, max_len=8, local_window=4), *CLASSIFY)
    assert distance(params, "decoder/dense/mlp/up/kernel") == [4, 2]
    assert distance(params, "decoder/local/mlp/up/kernel") == [3, 1]
    assert distance(params, "embeddings/position") == [5]


def test_the_two_networks_of_electra_count_each_for_itself():
    part = dataclasses.replace(BERT, embed_dim=8)
    params = params_of(
        ElectraConfig(part, dataclasses.replace(part, num_layers=2)),
        *(("generate", INPUTS), ("mlm_logits", HIDDEN), ("__call__", INPUTS), ("rtd_logits", HIDDEN)),
    )
    assert distance(params, "generator/encoder/mlp/up/kernel") == [2, 1]
    assert distance(params, "discriminator/encoder/mlp/up/kernel") == [4, 3, 2, 1]
    assert distance(params, "discriminator/rtd_head/dense/kernel") == distance(params, "generator/mlm_head/bias") == [0]
    assert distance(params, "embeddings/token") == [5]


@pytest.mark.parametrize("trainable", ["all", "head", "bias", "adapter"])
def test_what_is_separated_merges_into_the_whole(trainable: str):
    params = params_of(dataclasses.replace(BERT, adapter_dim=3), *CLASSIFY)
    trained, frozen = separate(params, trainable)
    assert merge(trained, frozen) == params or jax.tree.all(
        jax.tree.map(np.array_equal, merge(trained, frozen), params)
    )
    assert not set(names_of(trained)) & set(names_of(frozen))
    heads = {"classifier/dense/kernel", "classifier/dense/bias", "pooler/kernel", "pooler/bias"}
    wanted = {
        "all": lambda name: True,
        "head": lambda name: False,
        "bias": lambda name: name.endswith("/bias"),
        "adapter": lambda name: "adapter" in name or "norm" in name,
    }[trainable]
    assert set(names_of(trained)) == heads | {name for name in names_of(params) if wanted(name)}


def test_nothing_to_train_is_refused():
    params = params_of(BERT, ("__call__", INPUTS))
    with pytest.raises(UserError, match="trainable='head': the model has no such parameters"):
        separate(params, "head")
    with pytest.raises(UserError, match="trainable='adapter': the model has no adapters; give model.adapter_dim"):
        separate(params_of(BERT, *CLASSIFY), "adapter")


def test_gradients_of_what_is_trained_are_those_of_full_training_and_cost_less():
    objective, module = Classify(num_labels=2).make(Vocab(200)), BERT.make()
    state, _ = init_state(module, objective, optax.identity(), BATCH, make_mesh(Mesh(), jax.devices()[:1]), seed=0)
    apply, grads, flops = make_apply(module), {}, {}
    for trainable in ("all", "head", "bias"):

        def compute(params: dict, trainable: Any = trainable) -> tuple:
            return loss_and_grads(objective, apply, params, BATCH, None, 1, trainable)

        grads[trainable] = named_leaves(jax.jit(compute)(state.params)[2])
        flops[trainable] = count_matmul(compute, state.params)
    for trainable in ("head", "bias"):
        for name, gradient in grads[trainable].items():
            np.testing.assert_allclose(gradient, grads["all"][name], rtol=1e-5, atol=1e-8)
    assert flops["head"] < 0.4 * flops["all"] and flops["bias"] < 0.75 * flops["all"]


def test_microbatches_add_up_the_same_gradients_of_the_head():
    objective, module = Classify(num_labels=2).make(Vocab(200)), BERT.make()
    state, _ = init_state(module, objective, optax.identity(), BATCH, make_mesh(Mesh(), jax.devices()[:1]), seed=0)
    one, two = (
        loss_and_grads(objective, make_apply(module), state.params, BATCH, None, pieces, "head")[2] for pieces in (1, 2)
    )
    assert set(names_of(one)) == set(names_of(two))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), one, two)


@pytest.mark.slow
def test_frozen_parameters_keep_their_bits_and_have_no_optimiser_state(tiny: Experiment, tmp_path: Path):
    experiment = with_overrides(tiny, {"trainable": "bias", "evals": (), "mesh": Mesh(data=2, fsdp=2, tensor=2)})
    train(experiment, tmp_path, stop_after=1)
    before = Checkpoints(tmp_path / "tiny").read("params")
    results = train(experiment, tmp_path)
    trained, frozen = separate(Checkpoints(tmp_path / "tiny").read("params"), "bias")
    for name, leaf in named_leaves(frozen).items():
        assert leaf.tobytes() == named_leaves(before)[name].tobytes(), name
    for name, leaf in named_leaves(trained).items():
        assert not np.array_equal(leaf, named_leaves(before)[name]), name
    moments = Checkpoints(tmp_path / "tiny").read("opt")
    assert sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim) == 2 * results["trained_parameters"]
    assert results["trained_parameters"] < 0.5 * results["parameters"]


def test_the_norm_that_is_clipped_is_that_of_the_trained_part():
    params = {"encoder": {"kernel": jnp.ones((2, 3))}, "classifier": {"kernel": jnp.ones(4)}}

    def loss(apply: Any, params: dict, piece: dict, key: Any) -> Loss:
        total = 100.0 * jnp.sum(params["encoder"]["kernel"]) + jnp.sum(params["classifier"]["kernel"])
        return Loss({"sum": Sum(total, jnp.ones(()))}, {})

    objective = Objective(lambda key, batch: batch, loss, lambda *_: {})
    _, _, grads = loss_and_grads(objective, lambda *_: None, params, {}, None, 1, "head")
    assert names_of(grads) == ["classifier/kernel"] and float(optax.tree.norm(grads)) == pytest.approx(2.0)
