"""Where a training step on a CPU spends its time: by part, with the work of each part and the time it needs at best.

    python -m benchmarks.breakdown bert_base --batch 8 --dtype bfloat16 --out breakdown.json

Traces a few steps with jax's profiler, which records every operation of the compiled program on the thread that starts
it. Time in which several threads have an operation is divided between them, so that the parts and the gap, in which
none has, add up to the step. FLOPs are those of matrix products, bytes those of all operands and results; the roof is
the larger of FLOPs / the rate of a large product and bytes / the rate of a large copy. Dropout is part of the loops
around it: its share is the difference to the same step without it.
"""

import argparse
import collections
import json
import re
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData

from benchmarks.ours import Step, compile_step, matmul_rate
from benchmarks.worker import instructions, seconds

STEPS = 5
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
# The first pattern that a name such as "jit(train_step)/jvp(Bert.run)/…/attention/…" contains.
PARTS = [
    (r"/cond/", "optimiser"),
    (r"mlm_head|lm_head|mlm_logits|jvp\(\)", "head and loss"),
    (r"embeddings", "embeddings"),
    (r"attention/.*(query|key|value|out)/|/_heads", "attention: projections"),
    (r"attention/", "attention: scores"),
    (r"mlp/", "feed-forward"),
    (r"norm", "norms and residuals"),
    (r"train_step\)/(square|reduce_sum|sqrt|add|is_finite)", "norms of gradient and parameters"),
]


def part_of(name: str) -> str:
    """The part of a step that an operation belongs to, by its name in the traced program."""
    found = next((part for pattern, part in PARTS if re.search(pattern, name)), "other")
    if found in ("optimiser", "other") or found.startswith("norms of"):
        return found
    return f"{found}, {'backward' if 'transpose(' in name else 'forward'}"


class Operation:
    """An instruction of a compiled program: its name there and in the traced program, and its work."""

    def __init__(self, line: str, sizes: Mapping[str, int], shapes: Mapping[str, list[int]]):
        self.name = re.match(r"\s*(?:ROOT )?%([\w.-]+) = ", line)[1]
        found = re.search(r'op_name="([^"]*)"', line)
        self.source = found[1] if found else ""
        called = re.search(r" [a-z][\w-]*\(([^)]*)\)", line)  # the instruction, not a tuple of shapes before it
        self.operands = re.findall(r"%([\w.-]+)", called[1] if called else "")
        self.calls = re.findall(r"(?:calls|to_apply)=%([\w.-]+)", line)
        self.bytes = sizes.get(self.name, 0) + sum(sizes.get(name, 0) for name in self.operands)
        self.flops = 0
        if re.search(r" dot\(", line):
            contracted = [int(axis) for axis in re.search(r"lhs_contracting_dims={([\d,]*)}", line)[1].split(",")]
            depth = np.prod([shapes[self.operands[0]][axis] for axis in contracted])
            self.flops = int(2 * np.prod(shapes[self.name]) * depth)


def operations(text: str) -> dict[str, Operation]:
    """Every instruction of a compiled program by name; a fusion has the FLOPs of what is fused."""
    sizes, shapes, lines = {}, {}, collections.defaultdict(list)
    computation = ""
    for line in text.splitlines():
        if begin := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*{$", line):
            computation = begin[1]
        elif found := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\([^=]*?\)|\S+) \w", line):
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", found[2])
            dims = [[int(n) for n in inner.split(",") if n] for _, inner in arrays]
            sizes[found[1]] = sum(
                WIDTHS.get(kind, 0) * int(np.prod(d)) for (kind, _), d in zip(arrays, dims, strict=True)
            )
            shapes[found[1]] = dims[0] if dims else []
            lines[computation].append(line)
    parsed = {name: [Operation(line, sizes, shapes) for line in body] for name, body in lines.items()}
    for body in parsed.values():
        for operation in body:
            operation.flops += sum(inner.flops for name in operation.calls for inner in parsed.get(name, ()))
    return {operation.name: operation for body in parsed.values() for operation in body}


def spans(events: Iterable[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Events of one thread as spans that do not overlap: of nested ones, the inner one counts. In nanoseconds."""
    found: list[tuple[float, float, str]] = []
    stack: list[tuple[float, str]] = []
    at = 0.0
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while stack and stack[-1][0] <= start:
            until, inner = stack.pop()
            found.append((at, until, inner))
            at = until
        if stack:
            found.append((at, start, stack[-1][1]))
        at = start
        stack.append((end, name))
    while stack:
        until, inner = stack.pop()
        found.append((at, until, inner))
        at = until
    return [span for span in found if span[1] > span[0]]


def shares(threads: Sequence[Sequence[tuple[float, float, str]]]) -> dict[str, float]:
    """Nanoseconds of each name, where time that several threads spend at once is divided between them."""
    starts = [(start, 1, name) for spans in threads for start, _, name in spans]
    ends = [(end, -1, name) for spans in threads for _, end, name in spans]
    active: collections.Counter[str] = collections.Counter()
    found: dict[str, float] = collections.defaultdict(float)
    before = 0.0
    for at, change, name in sorted(starts + ends):
        for running, count in active.items():
            found[running] += (at - before) * count / active.total()
        before = at
        active[name] += change
        active += collections.Counter()  # without those that have ended
    return found


def trace(step: Step, known: Container[str]) -> tuple[dict[str, float], float]:
    """(milliseconds of each known operation, milliseconds of a step), with the profiler on."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            wall = seconds(step.run, STEPS) * 1e3
        threads = []
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    events = [(e.start_ns, e.start_ns + e.duration_ns, e.name) for e in line.events if e.name in known]
                    threads.append(spans(events))
    return {name: spent / 1e6 / STEPS for name, spent in shares(threads).items()}, wall


def breakdown(case: dict) -> dict:
    """The parts of a step: milliseconds, FLOPs, bytes and roof of each."""
    step = compile_step(case)
    for _ in range(2):
        step.run()
    known = operations(step.program.as_text())
    spent, wall = trace(step, known)
    parts: dict[str, dict] = collections.defaultdict(lambda: {"ms": 0.0, "flops": 0, "bytes": 0})
    for name, ms in spent.items():
        part = parts[part_of(known[name].source)]
        part["ms"] += ms
        part["flops"] += known[name].flops
        part["bytes"] += known[name].bytes
    rates = {"flops": matmul_rate(case["dtype"]), "bytes": copy_rate()}
    for part in parts.values():
        part["roof_ms"] = 1e3 * max(part[kind] / rates[kind] for kind in rates)
    without = compile_step(case | {"dropout": 0.0, "attention_dropout": 0.0})
    plain = [min(seconds(one.run, 1) for _ in range(STEPS)) * 1e3 for one in (step, without)]
    return {
        "case": case, "instructions": instructions(), "jax": jax.__version__, "step_ms": plain[0],
        "traced_step_ms": wall, "gap_ms": wall - sum(spent.values()), "dropout_ms": plain[0] - plain[1],
        "rates": rates, "parts": dict(sorted(parts.items(), key=lambda item: -item[1]["ms"])),
    }  # fmt: skip


def copy_rate() -> float:
    """Bytes per second that a large elementwise loop reads and writes."""
    x = jnp.ones(2**26, jnp.float32)
    program = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = program(x)

    def run() -> None:
        nonlocal x
        x = jax.block_until_ready(program(x))

    return 2 * x.nbytes / min(seconds(run, 1) for _ in range(5))


def main(args: Sequence[str] | None = None) -> None:
    """Measures one case and prints its parts, the longest first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(args)
    found = breakdown({name: value for name, value in vars(options).items() if name != "out"})
    print(f"{found['case']}, {found['instructions']}: {found['step_ms']:.0f} ms a step")
    print("| part | ms | share | GFLOP | GB | roof, ms | of the roof |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, part in found["parts"].items():
        print(
            f"| {name} | {part['ms']:.1f} | {part['ms'] / found['traced_step_ms']:.1%} | {part['flops'] / 1e9:.1f} |"
            f" {part['bytes'] / 1e9:.2f} | {part['roof_ms']:.1f} | {part['roof_ms'] / max(part['ms'], 1e-9):.0%} |"
        )
    print(f"| between operations | {found['gap_ms']:.1f} | {found['gap_ms'] / found['traced_step_ms']:.1%} | | | | |")
    print(f"dropout, by the difference to a step without it: {found['dropout_ms']:.0f} ms")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
