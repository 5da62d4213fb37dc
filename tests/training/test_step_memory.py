"""The state is updated in place: the compiled step holds it once, not twice, and nothing else as large."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bertgpt.config import Mesh
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.sharding import make_mesh, spec, state_shardings
from bertgpt.training.optim import AdamW
from bertgpt.training.state import boxed_state
from bertgpt.training.step import make_train_step
from bertgpt.types import TEXT_SPEC, Vocab

MODEL = BertConfig(vocab_size=8192, d_model=256, num_layers=6, num_heads=4, d_ff=1024, max_len=32, scan=True)


def compiled_step(mesh: jax.sharding.Mesh) -> tuple[jax.stages.Compiled, int]:
    """The training step's program for a mesh, and its number of parameters."""
    module = dataclasses.replace(MODEL, remat="full").make("bfloat16")
    objective = MaskedLM().make(Vocab(8192, 0, 1, 2, 3, 4))
    tx, schedule = AdamW(lr=1e-3).make(10)
    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, spec(("batch", None)))
        batch = {name: jax.ShapeDtypeStruct((16, 32), jnp.int32, sharding=rows) for name in TEXT_SPEC}
        boxed = jax.eval_shape(lambda batch: boxed_state(module, objective, tx, batch, 0, "all", None), batch)
        shardings = state_shardings(boxed, mesh)
        shapes = nn.unbox(boxed)
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        step = make_train_step(objective, make_apply(module), tx, schedule, shardings, seed=0)
        return step.lower(state, batch).compile(), sum(x.size for x in jax.tree.leaves(shapes.params))


@pytest.mark.parametrize("where", ["one device", "fsdp", pytest.param("tpu", marks=pytest.mark.slow)])
def test_a_step_holds_its_state_once(where, request):
    if where == "tpu":
        # Shards narrower than 128 would be padded.
        mesh = make_mesh(Mesh(data=2, fsdp=2), request.getfixturevalue("tpu_topology")("v5e:2x2"))
    else:
        mesh = make_mesh(*((Mesh(), jax.devices()[:1]) if where == "one device" else (Mesh(data=1, fsdp=8),)))
    program, parameters = compiled_step(mesh)
    found = program.memory_analysis()
    formula = 12 * parameters / mesh.shape["fsdp"]  # float32: parameters and Adam's two moments
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    assert 0.99 * formula < held < 1.1 * formula
    assert found.alias_size_in_bytes > 0.99 * formula
    assert "input_output_alias" in program.as_text()
