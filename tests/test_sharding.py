"""Layouts: every mesh computes the same update, and what is said about layout reaches the compiler."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from bertgpt.config import Mesh
from bertgpt.models.apply import make_apply
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.sharding import arrange, constrain, make_mesh, put_batch, spec, state_shardings
from bertgpt.training.state import NOISE, init_state, random_key
from bertgpt.training.step import loss_and_grads
from bertgpt.types import UserError, Vocab

VOCAB = Vocab(size=200, pad=0, unk=1, cls=2, sep=3, mask=4)
MODEL = dataclasses.replace(TINY, dropout=0.0, attention_dropout=0.0)
OBJECTIVE = MaskedLM(pair="nsp").make(VOCAB)
MESHES = [Mesh(data=8), Mesh(data=1, fsdp=8), Mesh(data=2, tensor=4), Mesh(data=2, fsdp=2, tensor=2)]


@pytest.fixture
def batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    zeros = np.zeros((16, 32), np.int32)
    return {
        "input_ids": rng.integers(5, 200, (16, 32)).astype(np.int32),
        "segment_ids": (np.arange(32) < rng.integers(8, 33, (16, 1))).astype(np.int32),
        "positions": zeros + np.arange(32, dtype=np.int32),
        "type_ids": zeros,
        "pair_label": rng.integers(0, 2, 16).astype(np.int32),
    }


def compute(layout: Mesh, devices: int, batch: dict) -> tuple[float, dict, dict, str]:
    """(loss, gradients, parameters, lowered text) of one update on a mesh of that layout."""
    mesh = make_mesh(layout, jax.devices()[:devices])
    apply = make_apply(MODEL.make())
    with jax.set_mesh(mesh):
        placed = put_batch(batch, mesh)
        state, shardings = init_state(MODEL.make(), OBJECTIVE, optax.adam(1.0), placed, mesh, seed=0)

        def update(params, batch):
            prepared = OBJECTIVE.prepare(random_key(0, NOISE, 0), batch)
            return loss_and_grads(OBJECTIVE, apply, params, prepared, None, 1)[::2]

        step = jax.jit(update, out_shardings=(None, shardings.params))
        loss, grads = step(state.params, placed)
        return float(loss), jax.device_get(grads), state.params, step.lower(state.params, placed).as_text()


@pytest.mark.slow
def test_every_layout_gives_the_loss_and_gradients_of_one_device(batch: dict):
    loss, grads, _, _ = compute(Mesh(), 1, batch)
    for layout in MESHES:
        other, sharded, _, _ = compute(layout, 8, batch)
        assert other == pytest.approx(loss, rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), sharded, grads)


def test_constraints_and_shards_are_where_the_rules_put_them(batch: dict):
    _, _, params, text = compute(Mesh(data=2, fsdp=2, tensor=2), 8, batch)
    constraints = re.findall(r"sharding_constraint .*", text)
    assert any('"dcn", "data", "fsdp", "expert"' in line for line in constraints), (
        "activations are not pinned to the batch axes"
    )
    assert any('"tensor"' in line for line in constraints), "logits or heads are not pinned to the tensor axis"
    kernel = params["encoder"]["mlp"]["up"]["kernel"]  # [L, D, F]
    assert kernel.sharding.spec == spec(("layers", "embed", "mlp"))
    assert kernel.addressable_shards[0].data.shape == (2, 8, 16)
    assert params["embeddings"]["token"].addressable_shards[0].data.shape == (100, 8)


def test_an_axis_outside_the_vocabulary_raises():
    with pytest.raises(KeyError, match="embedd"):
        spec(("vocab", "embedd"))
    with pytest.raises(KeyError, match="batsh"):
        constrain(jnp.zeros(2), ("batsh",))


def test_a_dimension_that_does_not_divide_names_its_parameter(batch: dict):
    mesh = make_mesh(Mesh(data=1, tensor=8))
    with pytest.raises(UserError, match=r"'key'.*model.num_heads=4 is not divisible by mesh.tensor=8"):
        init_state(MODEL.make(), OBJECTIVE, optax.sgd(1.0), put_batch(batch, mesh), mesh, seed=0)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Mesh(data=3), "mesh data 3 does not fit 8 device(s): the product of the axes, here 3, must be 8"),
        (Mesh(data=1), "mesh of one device does not fit 8 device(s): the product of the axes, here 1, must be 8"),
        (Mesh(fsdp=-1), "mesh data -1 × fsdp -1 does not fit 8 device(s): only one axis may be -1, not data and fsdp"),
        (Mesh(data=0), "mesh data 0 does not fit 8 device(s): mesh.data=0 must be at least 1, or -1"),
        (Mesh(data=4, fsdp=3), "mesh data 4 × fsdp 3 does not fit 8 device(s): the product of the axes, here 12"),
        (Mesh(tensor=16), "mesh data -1 × tensor 16 does not fit 8 device(s): the product of the axes, here 16"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(layout: Mesh, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        make_mesh(layout)


def test_one_free_axis_takes_what_is_left():
    assert dict(make_mesh(Mesh(tensor=2)).shape) == {
        "dcn": 1,
        "data": 4,
        "fsdp": 1,
        "expert": 1,
        "sequence": 1,
        "tensor": 2,
    }
    assert dict(make_mesh(Mesh(data=2, fsdp=-1)).shape) == {
        "dcn": 1,
        "data": 2,
        "fsdp": 4,
        "expert": 1,
        "sequence": 1,
        "tensor": 1,
    }


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh looks at: enough to arrange slices that are not here."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "imagined"


def test_dcn_runs_over_slices_in_whatever_order_devices_come():
    placed = arrange([Device(i, slice_index=i % 2) for i in range(8)], (2, 2, 1, 1, 1, 2))
    assert placed.shape == (2, 2, 1, 1, 1, 2)
    assert [{device.slice_index for device in part.flat} for part in placed] == [{0}, {1}]


def test_a_mesh_that_does_not_say_how_many_slices_there_are_is_refused():
    with pytest.raises(UserError, match=r"mesh\.dcn=1 must be 2, the number of slices"):
        arrange([Device(i, slice_index=i // 4) for i in range(8)], (1, 8, 1, 1, 1, 1))


def test_dcn_runs_over_groups_of_neighbours_where_there_are_no_slices():
    mesh = make_mesh(Mesh(dcn=2, data=4))
    assert [[device.id for device in part.flat] for part in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_meshes_of_tpu_slices_are_hybrid(tpu_topology: Callable):
    mesh = make_mesh(Mesh(dcn=2, fsdp=2, data=1, tensor=2), tpu_topology("v5e:2x2", num_slices=2))
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]


def test_axes_of_a_mesh_may_split_axes_of_a_torus(tpu_topology: Callable):
    mesh = make_mesh(Mesh(data=2, fsdp=8, tensor=4), tpu_topology("v5p:4x4x4"))
    assert mesh.devices.shape == (1, 2, 8, 1, 1, 4)


def test_a_batch_is_split_over_data_and_fsdp(batch: dict):
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    placed = put_batch(batch, mesh)
    assert placed["input_ids"].addressable_shards[0].data.shape == (4, 32)
    np.testing.assert_array_equal(placed["input_ids"], batch["input_ids"])


def test_unboxed_leaves_are_replicated():
    mesh = make_mesh(Mesh(fsdp=8, data=1))
    assert state_shardings({"x": jnp.zeros((3, 5))}, mesh)["x"].is_fully_replicated
