"""Counting in the text of compiled programs: the same totals however a program is compiled, and exact where known."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertgpt.config import Mesh
from bertgpt.planning.collectives import _groups, collectives_of, totals
from bertgpt.planning.hlo import Array, Instruction, arrays_of, parse
from bertgpt.sharding import make_mesh
from bertgpt.training.throughput import count_matmul

LAYERS, WIDTH = 5, 16


def compiled(function: Callable, *shapes: jax.ShapeDtypeStruct) -> str:
    return jax.jit(function).lower(*shapes).compile().as_text()


def shape(*sizes: int, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)


def layers(unroll: int) -> Callable:
    def gradient(x: jax.Array, weights: jax.Array) -> jax.Array:
        def loss(weights: jax.Array) -> jax.Array:
            return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights, unroll=unroll)[0])

        return jax.grad(loss)(weights)

    return gradient


def test_a_loop_counts_as_often_as_it_runs():
    arguments = shape(8, WIDTH), shape(LAYERS, WIDTH, WIDTH)
    scanned, unrolled = (parse(compiled(layers(unroll), *arguments)) for unroll in (1, LAYERS))
    expected = count_matmul(layers(1), *arguments)
    assert expected == 3 * LAYERS * 2 * 8 * WIDTH * WIDTH
    # The gradient of the first layer's input is not needed: the unrolled program leaves out its product.
    assert scanned.flops() == expected
    assert unrolled.flops() == expected - 2 * 8 * WIDTH * WIDTH
    assert scanned.unknown_loops == 0


def test_a_loop_in_a_loop_counts_by_both():
    def nested(x: jax.Array, w: jax.Array) -> jax.Array:
        def outer(h: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, length=3)[0], None

        return jax.lax.scan(outer, x, length=4)[0]

    assert parse(compiled(nested, shape(8, WIDTH), shape(WIDTH, WIDTH))).flops() == 3 * 4 * 2 * 8 * WIDTH * WIDTH


def test_the_traffic_of_a_product_is_its_operands_and_its_result():
    module = parse(compiled(jnp.matmul, shape(8, 32), shape(32, 64)))
    assert module.memory_traffic() == 4 * (8 * 32 + 32 * 64 + 8 * 64)


def test_a_slice_counts_as_the_slice():
    def rows(table: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(table, 3, 2) * 2

    traffic = parse(compiled(rows, shape(10_000, 16))).memory_traffic()
    assert traffic <= 4 * 2 * (2 * 16) + 64


def test_types_with_layouts_are_read():
    found = arrays_of("(bf16[2,64]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, pred[3]{0}, s4[10])")
    assert found == [
        Array("bf16", (2, 64), True), Array("f32", (), False), Array("pred", (3,), False), Array("s4", (10,), False)
    ]  # fmt: skip
    assert [array.bytes for array in found] == [256, 4, 3, 5]


# A TPU's program in small: a reduce-scatter is a fusion, and one gather is spread over three.
TPU = """HloModule tiny

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[128,8]) -> f32[32,8] {
  %input = f32[128,8]{1,0} parameter(0)
  %reduced = f32[128,8]{1,0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = f32[32,8]{1,0} dynamic-slice(%reduced, %zero, %zero), dynamic_slice_sizes={32,8}
}

%start (p: bf16[32,8]) -> bf16[128,8] {
  %p = bf16[32,8]{1,0} parameter(0)
  ROOT %g = bf16[128,8] all-gather(%p), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, x={chain_id="3"}
}

%finish (p: bf16[32,8]) -> bf16[128,8] {
  %p = bf16[32,8]{1,0} parameter(0)
  ROOT %g = bf16[128,8] all-gather(%p), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'b'}, x={chain_id="3"}
}

%body (state: (s32[], f32[128,8], bf16[32,8])) -> (s32[], f32[128,8], bf16[32,8]) {
  %state = (s32[], f32[128,8]{1,0}, bf16[32,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[128,8]{1,0} get-tuple-element(%state), index=1
  %y = bf16[32,8]{1,0} get-tuple-element(%state), index=2
  %scattered = f32[32,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %began = bf16[128,8]{1,0} fusion(%y), kind=kLoop, calls=%start
  %ended = bf16[128,8]{1,0} fusion(%y), kind=kLoop, calls=%finish
  ROOT %next = (s32[], f32[128,8]{1,0}, bf16[32,8]{1,0}) tuple(%i, %x, %y)
}

%condition (state: (s32[], f32[128,8], bf16[32,8])) -> pred[] {
  %state = (s32[], f32[128,8]{1,0}, bf16[32,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(24)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[128,8], y: bf16[32,8]) -> (s32[], f32[128,8], bf16[32,8]) {
  %x = f32[128,8]{1,0} parameter(0)
  %y = bf16[32,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %state = (s32[], f32[128,8]{1,0}, bf16[32,8]{1,0}) tuple(%zero, %x, %y)
  ROOT %loop = (s32[], f32[128,8]{1,0}, bf16[32,8]{1,0}) while(%state), condition=%condition, body=%body
}
"""


def test_the_collectives_of_a_tpu_are_what_they_are_and_count_once():
    found = totals(collectives_of(TPU, make_mesh(Mesh(data=2, fsdp=4))))
    assert found == {
        ("reduce-scatter", ("fsdp",)): (24, 24 * 4 * 128 * 8, 24 * 3 * 128 * 8),
        ("all-gather", ("fsdp",)): (24, 24 * 2 * 128 * 8, 24 * 2 * 128 * 8 * 3 / 4),
    }


def test_collectives_are_named_by_their_mesh_axes():
    mesh = make_mesh(Mesh(data=2, fsdp=4))
    rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
    columns = NamedSharding(mesh, P("fsdp"))

    def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jax.lax.with_sharding_constraint(x.T @ x, whole)
        return total, jax.lax.with_sharding_constraint(w, whole)

    text = compiled(step, shape(64, 16, sharding=rows), shape(32, 16, sharding=columns))
    assert totals(collectives_of(text, mesh)) == {
        ("all-reduce", ("data", "fsdp")): (1, 4 * 16 * 16, 4 * 16 * 16 * 2 * 7 / 8),
        ("all-gather", ("fsdp",)): (1, 4 * 32 * 16, 4 * 32 * 16 * 3 / 4),
    }


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,2},{2,0}}, x", [[0, 2], [2, 0]]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(text: str, groups: list):
    instruction = Instruction("x", "f32[]", "all-reduce", (), text, "", False)
    np.testing.assert_array_equal(_groups(instruction, 4), groups)
