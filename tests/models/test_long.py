"""Models compute the same whatever computes their attention, and choose it by their target devices."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fast
from test_families import init, logits
from test_remat import ALL, changed

from bertgpt.config import Mesh
from bertgpt.models.apply import make_apply
from bertgpt.sharding import make_mesh, state_shardings
from bertgpt.types import Inputs


@pytest.mark.parametrize("name", fast(ALL, "gpt-local", "t5"))
def test_attention_in_blocks_gives_every_family_its_scores_and_gradients(name, rng, float64):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init(ALL[name])[1])
    ids, decoder_ids = (jnp.asarray(rng.integers(0, 50, (2, 9))) for _ in range(2))
    segments = jnp.asarray([[1] * 9, [1] * 4 + [2] * 3 + [0] * 2])
    positions = jnp.asarray([[*range(9)], [*range(4), *range(3), 0, 0]])

    def value_and_grad(attention):
        module = changed(ALL[name], attention=attention, remat="names").make("float64")

        def loss(params):
            scores = nn.apply(logits, module)({"params": params}, ids, decoder_ids, segments, positions)
            return jnp.mean(jnp.square(scores) * (segments > 0)[..., None])

        return jax.jit(jax.value_and_grad(loss))(params)

    got, want = value_and_grad("chunked"), value_and_grad("xla")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.abs(b).max() + 1e-16)


def lowered(config, mesh, length, dtype="bfloat16"):
    """The gradient of a model on packed rows, lowered for a mesh."""
    module = config.make(dtype)
    apply = make_apply(module)
    ids = jax.ShapeDtypeStruct((8, length), jnp.int32)
    with jax.set_mesh(mesh):
        inputs = Inputs(ids, ids, decoder=Inputs(ids, ids))
        boxed = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), inputs)["params"], inputs)
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nn.unbox(boxed), state_shardings(boxed, mesh),
        )  # fmt: skip

        def loss(params, inputs):
            return jnp.sum(apply(params, inputs).astype(jnp.float32) ** 2)

        return jax.jit(jax.grad(loss)).lower(shapes, inputs)


SMALL = {"vocab_size": 512, "d_model": 256, "num_layers": 2, "num_heads": 4, "d_ff": 512, "max_len": 512, "scan": True}


@pytest.mark.parametrize("name", fast(["bert", "gpt"], "bert"))
def test_on_tpus_packed_rows_are_attended_to_by_the_kernel(name, tpu_topology):
    mesh = make_mesh(Mesh(data=2, tensor=2), tpu_topology("v5e:2x2"))
    config = dataclasses.replace(ALL[name], **SMALL, dropout=0.0, attention_dropout=0.0)
    scores = "8x4x512x512x"
    assert scores in lowered(dataclasses.replace(config, attention="xla"), mesh, 512).as_text()
    program = lowered(config, mesh, 512)
    assert scores not in program.as_text()
    text = program.compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') >= 3  # forward, and two of the backward pass
    assert "4,2,512,512]" not in text


def test_programs_for_tpus_compute_in_bfloat16_throughout(tpu_topology):
    """Decided by the devices that they are lowered for; on CPUs only products are in bfloat16."""
    config = dataclasses.replace(ALL["bert"], **SMALL, attention="xla")
    tpu = lowered(config, make_mesh(Mesh(data=4), tpu_topology("v5e:2x2")), 128).as_text()
    cpu = lowered(config, make_mesh(Mesh(), jax.devices()[:1]), 128).as_text()
    activations = "8x128x512x"
    assert any("stablehlo.tanh" in line and f"{activations}bf16" in line for line in tpu.splitlines())
    assert "LayoutConstraint" not in tpu
    assert any("stablehlo.tanh" in line and f"{activations}f32" in line for line in cpu.splitlines())
    assert "LayoutConstraint" in cpu
