"""What the compiler for TPUs makes of each axis of a mesh: kinds and bytes of collectives, without having a TPU."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest
from meshes import BERT, FAMILIES, LENGTH, ROWS, compile_update, initial_params, packed_batch

from bertgpt.config import Mesh
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.planning.collectives import Collective, collectives_of
from bertgpt.sharding import make_mesh
from bertgpt.types import ModelConfig, ObjectiveConfig

pytestmark = pytest.mark.slow

BATCH = packed_batch(np.random.default_rng(0))
WIDE = dataclasses.replace(BERT, d_model=256, d_ff=1024)  # where matrices are most of the bytes
HIDDEN = ROWS * LENGTH * 4  # bytes of hidden states of width 1
SMALL = 2048  # bytes of sums, metrics and indices, which some mesh axes reduce too


@pytest.fixture(scope="module")
def compiled(tpu_topology: Callable) -> Callable[..., list[Collective]]:
    """(model, objective, mesh) → the collectives of its update on four TPUs."""

    def collectives(model: ModelConfig, objective: ObjectiveConfig, layout: Mesh) -> list[Collective]:
        mesh = make_mesh(layout, tpu_topology("v5e:2x2"))
        return collectives_of(compile_update(model, objective, BATCH, mesh)[0].as_text(), mesh)

    return collectives


def total(found: list[Collective], *kinds: str) -> float:
    """Bytes of all collectives of these kinds."""
    return sum(one.bytes * one.runs for one in found if one.kind in kinds)


def parameter_bytes(model: ModelConfig, objective: ObjectiveConfig) -> int:
    return sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(nn.unbox(initial_params(model, objective))))


def test_data_parallelism_reduces_every_gradient_once(compiled: Callable):
    found, size = compiled(WIDE, MaskedLM(), Mesh(data=4)), parameter_bytes(WIDE, MaskedLM())
    assert {one.kind for one in found} == {"all-reduce"} and {one.axes for one in found} == {("data",)}
    table = 256 * 256 * 4  # a tied embedding may be reduced in its two parts
    assert size <= total(found, "all-reduce") <= size + table + SMALL


def test_fsdp_gathers_parameters_and_scatters_gradients(compiled: Callable):
    found, size = compiled(WIDE, MaskedLM(), Mesh(data=1, fsdp=4)), parameter_bytes(WIDE, MaskedLM())
    kernels = 2 * (4 * 256 * 256 + 2 * 256 * 1024) * 4
    assert total(found, "reduce-scatter") >= kernels
    assert size <= total(found, "reduce-scatter", "all-reduce") <= size + 256 * 256 * 4 + 4 * SMALL
    # Gathered once, in the bfloat16 in which TPUs multiply, or in float32 where they are looked up.
    assert kernels / 2 <= total(found, "all-gather") <= size
    assert total(found, "all-to-all", "collective-permute") <= SMALL


def test_tensor_parallelism_reduces_twice_a_block_each_way(compiled: Callable):
    found = compiled(BERT, MaskedLM(pair="nsp"), Mesh(data=1, tensor=4))
    assert {one.axes for one in found} == {("tensor",)}
    hidden = [one for one in found if one.bytes == HIDDEN * BERT.d_model]
    assert {one.kind for one in hidden} == {"all-reduce"}
    # Two a block in the forward pass and two in the backward pass, and one for the rows of the embedding table.
    assert sum(one.runs for one in hidden) == 4 * BERT.num_layers + 1
    assert total(found, "all-reduce") - total(hidden, "all-reduce") < HIDDEN * BERT.d_model / 4
    assert total(found, "all-gather", "reduce-scatter", "all-to-all", "collective-permute") <= SMALL


def test_expert_parallelism_exchanges_tokens(compiled: Callable):
    model, objective = FAMILIES["switch"]
    found = compiled(model, objective, Mesh(data=1, expert=4))
    exchanged = [one for one in found if one.kind == "all-to-all"]
    assert {one.axes for one in exchanged} == {("expert",)}
    # To the experts and back, forward and backward, in the sparse layer of each side.
    assert sum(one.runs for one in exchanged) == 2 * 2 * 2
    _, targets = objective.lengths(LENGTH)
    capacity = [math.ceil(length / 4 * model.experts.train_capacity) for length in (LENGTH, targets)]
    # Each device holds all places of its rows, in the bfloat16 in which TPUs multiply.
    assert total(found, "all-to-all") == sum(4 * 4 * (ROWS // 4) * places * 32 * 2 for places in capacity)
    experts = 2 * 2 * 4 * 32 * 64 * 4
    assert total(found, "all-reduce") <= parameter_bytes(model, objective) - experts + SMALL
    assert total(found, "all-gather", "reduce-scatter", "collective-permute") <= SMALL


def test_sequence_parallelism_gathers_keys_and_values(compiled: Callable):
    found = compiled(BERT, MaskedLM(pair="nsp"), Mesh(data=1, sequence=4))
    gathered = [one for one in found if one.kind == "all-gather" and "attention" in one.op_name]
    assert sum(one.runs for one in gathered) == 2 * BERT.num_layers
    assert {one.bytes for one in gathered} <= {HIDDEN * BERT.d_model, HIDDEN * BERT.d_model / 2}  # float32 or bfloat16
    # The states of predicted positions, and the pieces of noise for whole sequences, are the rest.
    assert total(found, "all-gather") - total(gathered, "all-gather") <= HIDDEN * BERT.d_model / 2
    assert total(found, "all-to-all", "collective-permute") <= SMALL
