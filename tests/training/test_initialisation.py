"""The initial state has the bits of the model as it is trained, although its program loops over layers."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, fast

from bertgpt.adaptation.lora import Lora
from bertgpt.config import Mesh, leaves, scanned
from bertgpt.layers.moe import Experts
from bertgpt.models.apply import initial_parameters
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.sharding import make_mesh, put_batch
from bertgpt.training.optim import AdamW
from bertgpt.training.state import boxed_state, init_state, plan_state
from bertgpt.types import Inputs, Vocab

VOCAB = Vocab(200, pad=0, unk=1, cls=2, sep=3, mask=4)
ONES = np.ones((8, 16), np.int32)
BATCH = {name: ONES for name in ("input_ids", "segment_ids", "target_ids", "target_segment_ids")}
BATCH |= {name: ONES * np.arange(16, dtype=np.int32) for name in ("positions", "target_positions")}
BATCH |= {"type_ids": 0 * ONES, "label": ONES[:, 0], "images": np.ones((8, 1, 8, 8, 3), np.uint8)}
SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 3, "num_heads": 4, "d_ff": 32, "max_len": 32}
BERT = dataclasses.replace(TINY, scan=False)
T5 = T5Config(**SIZE, num_decoder_layers=2, head_dim=5)
CASES = {
    "bert": (BERT, MaskedLM(), {}),
    "lora": (BERT, Classify(num_labels=3), {"lora": Lora(rank=2, targets=("query", "mlp/up"))}),
    "adapters": (dataclasses.replace(BERT, adapter_dim=4), Classify(num_labels=3), {"trainable": "adapter"}),
    "albert": (dataclasses.replace(BERT, embed_dim=8, shared_groups=2), MaskedLM(), {}),
    "gpt": (GptConfig(**SIZE), CausalLM(), {}),
    "t5": (T5, Seq2Seq(), {}),
    "switch": (dataclasses.replace(T5, num_layers=2, experts=Experts(4)), Seq2Seq(), {}),
    "vit": (
        VitConfig(d_model=16, num_layers=3, num_heads=4, d_ff=32, image_size=(8, 8), patch_size=4),
        Classify(num_labels=3),
        {},
    ),
}


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, fsdp=2, tensor=2)], ids=["one device", "eight devices"])
@pytest.mark.parametrize("name", fast(CASES, "bert", "t5"))
def test_the_initial_state_has_the_bits_of_unrolled_layers(name: str, mesh: Mesh):
    config, objective, settings = CASES[name]
    module, made, (tx, _) = config.make(), objective.make(VOCAB), AdamW().make(10)
    devices = make_mesh(mesh, jax.devices()[: 1 if mesh == Mesh() else 8])
    batch = put_batch(BATCH, devices)
    with jax.set_mesh(devices):
        state, shardings = init_state(module, made, tx, batch, devices, 3, **settings)
        expected = jax.jit(
            lambda: nn.unbox(boxed_state(module, made, tx, batch, 3, **settings)), out_shardings=shardings
        )()
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_plan_says_what_the_state_will_be_and_allocates_nothing():
    mesh = make_mesh(Mesh(data=1, fsdp=8))
    with jax.set_mesh(mesh):
        batch = put_batch(BATCH, mesh)
        before = len(jax.live_arrays())
        plan = plan_state(BERT.make(), MaskedLM().make(VOCAB), AdamW().make(10)[0], batch, mesh, 0)
        assert len(jax.live_arrays()) == before
        state = plan.run()
    chex.assert_trees_all_equal_shapes_and_dtypes(state, plan.shapes)
    assert jax.tree.map(lambda x: x.sharding, state) == plan.shardings
    assert jax.tree.map(lambda x: x.sharding, plan.shapes) == plan.shardings


def test_every_stack_of_a_composed_model_is_compiled_as_a_loop():
    whole = CaptionerConfig(vision=CASES["vit"][0], language=GptConfig(**SIZE))
    changed = dict(leaves(scanned(whole))).items() - dict(leaves(whole)).items()
    assert changed == {("vision.scan", True), ("language.scan", True)}


def test_parameters_that_join_models_have_the_bits_of_unrolled_layers():
    module, inputs = BERT.make(), Inputs(jnp.ones((1, 4), jnp.int32))
    found = initial_parameters(module, inputs, {"mlm_logits": {}}, seed=2)
    expected = initial_parameters(dataclasses.replace(BERT, scan=True).make(), inputs, {"mlm_logits": {}}, seed=2)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    hidden = nn.init(lambda m, x: m.run(None, "mlm_logits", None, {"hidden": m(x)}), module)
    unrolled = nn.unbox(jax.jit(hidden)({"params": jax.random.key(2)}, inputs)["params"])
    jax.tree.map(np.testing.assert_array_equal, found, unrolled)
