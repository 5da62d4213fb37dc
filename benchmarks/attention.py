"""Implementations of attention against each other: values and gradients, peak memory and time, on one device.

    python -m benchmarks.attention --out attention.json
    python -m benchmarks.attention --lengths 64 128 --batch 1 --heads 2 --repeat 1    # a quick look on a CPU

Each case is compared with all scores at once, in float32 with products at full precision, on the same (rounded) inputs.
"deviation" is the largest difference of a value or gradient, divided by the largest magnitude of the reference. Needs
jax, flax, jaxtyping and numpy only.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.layers.attention import attend
from bertgpt.layers.masks import Mask, choose
from bertgpt.layers.position import RelativePositions, bias_of
from bertgpt.types import UserError

KINDS = ("dense", "packed", "causal", "causal packed", "relative bias")


def segments_of(rng: np.random.Generator, batch: int, length: int) -> jax.Array:
    """Four documents a row, and padding behind them."""
    ends = np.sort(rng.integers(length // 8, length, (batch, 4)), axis=1)
    number = (np.arange(length)[None, :, None] >= ends[:, None]).sum(-1) + 1
    return jnp.asarray(np.where(number == 5, 0, number), jnp.int32)


def rules_of(kind: str, rng: np.random.Generator, batch: int, length: int) -> Mask:
    """The mask of a kind of attention."""
    segments = segments_of(rng, batch, length) if "packed" in kind else None
    return Mask(segments, segments, causal="causal" in kind)


def program(name: str, mask: Mask, bias: RelativePositions | None) -> Callable[..., jax.Array]:
    """(table, query, key, value) → attention by an implementation."""

    def with_table(table: jax.Array | None) -> RelativePositions | jax.Array | None:
        if bias is None:
            return None
        if name == "xla":
            return bias_of(table, bias.query, bias.key, bias.bidirectional, bias.max_distance)
        return RelativePositions(table, bias.query, bias.key, bias.bidirectional, bias.max_distance)

    def run(table: jax.Array | None, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        given = mask.dense(query.shape[2]) if name == "xla" else dataclasses.replace(mask, implementation=name)
        return attend(query, key, value, given, with_table(table))

    return run


def gradients(run: Callable[..., jax.Array], weight: jax.Array) -> Callable[..., tuple]:
    """(table, query, key, value) → the values, and the gradients of their sum times `weight`."""

    def both(table: jax.Array | None, *arrays: jax.Array) -> tuple:
        out, pull = jax.vjp(run, table, *arrays)
        return out, pull(weight.astype(out.dtype))

    return both


def deviation(got: object, want: object) -> float:
    """The largest difference of a leaf, divided by the largest magnitude of that leaf of `want`."""
    found = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        found = max(found, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return found


def seconds(function: Callable[..., object], arguments: Sequence[object], repeat: int) -> float:
    """Of one call, the fastest of several."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def measure(name: str, kind: str, length: int, options: argparse.Namespace) -> dict:
    """One implementation on one kind of attention and length."""
    rng = np.random.default_rng(length)
    batch, heads, width = options.batch, options.heads, options.width
    dtype = jnp.dtype(options.dtype)
    mask = rules_of(kind, rng, batch, length)
    bias, table = None, None
    if kind == "relative bias":
        positions = jnp.arange(length)[None]
        table = jnp.asarray(rng.normal(size=(32, heads)), jnp.float32)
        bias = RelativePositions(table, positions, positions, True, 128)
    record = {"implementation": name, "kind": kind, "length": length, "dtype": dtype.name}
    try:
        choose(name, mask, (length, length), width, dtype, bias=bias is not None)
    except UserError as error:
        return record | {"refused": str(error)}
    shape = (batch, heads, length, width)
    query, key, value, weight = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    query = query * width**-0.5
    arguments = table, query, key, value
    forward = jax.jit(program(name, mask, bias)).lower(*arguments).compile()
    step = jax.jit(gradients(program(name, mask, bias), weight)).lower(*arguments).compile()
    got = jax.block_until_ready(step(*arguments))
    analysis = step.memory_analysis()
    record |= {"temporary_mb": round(analysis.temp_size_in_bytes / 2**20, 2)}
    # Padding and real tokens alike: padding attends to padding.
    exact = [None if x is None else x.astype(jnp.float32) for x in arguments]
    if batch * heads * length**2 <= options.largest:
        with jax.default_matmul_precision("highest"):
            want = jax.jit(gradients(program("xla", mask, bias), weight.astype(jnp.float32)))(*exact)
        record["deviation"] = deviation(got, want)
    record["forward_ms"] = 1e3 * seconds(forward, arguments, options.repeat)
    record["step_ms"] = 1e3 * seconds(step, arguments, options.repeat)
    return record


def main(args: Sequence[str] | None = None) -> None:
    """Runs all cases, prints a line for each, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    whole = functools.partial(parser.add_argument, type=int)
    whole("--lengths", nargs="+", default=[64, 128, 192, 320, 512, 1024, 2048])
    whole("--batch", default=8)
    whole("--heads", default=12)
    whole("--width", default=64, help="of a head")
    whole("--repeat", default=10, help="the fastest of so many runs counts")
    whole("--largest", default=2**31, help="more scores than this are not compared with the reference")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--implementations", nargs="+", default=["xla", "chunked", "cudnn"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(args)
    device = jax.devices()[0]
    records = []
    print(f"{device.device_kind}, jax {jax.__version__}, B={options.batch} H={options.heads} K={options.width}")
    for kind in options.kinds:
        for length in options.lengths:
            for name in options.implementations:
                try:
                    record = measure(name, kind, length, options)
                except Exception as error:  # one case must not cost the others
                    record = {"implementation": name, "kind": kind, "length": length, "error": str(error)[:500]}
                records.append(record)
                print(json.dumps(record), flush=True)
    if options.out:
        facts = {"device": device.device_kind, "jax": jax.__version__, "records": records}
        options.out.write_text(json.dumps(facts | {"shape": [options.batch, options.heads, options.width]}, indent=1))


if __name__ == "__main__":
    main()
