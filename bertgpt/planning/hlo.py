"""Reads the text of a compiled program: loops and how often they run, FLOPs, bytes of memory traffic.

XLA's own `cost_analysis` counts the body of a loop once, and a scan over 24 layers is a loop: everything here is
multiplied by the iterations of the loops around it. The text is that of `jax.stages.Compiled.as_text()`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0}


class Array(NamedTuple):
    """One array of a type."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool
    """laid out in a memory space other than HBM, such as a TPU's vector memory"""

    @property
    def bytes(self) -> float:
        """Size, without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits.group()) if digits else 32)
        return math.prod(self.shape) * bits / 8


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """everything after the operands"""
    literal: str
    """the text between the parentheses: the value of a constant, the number of a parameter"""
    root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return arrays_of(self.type)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its result, the first one of a tuple."""
        return self.arrays[0].shape

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that these attributes name."""
        found = []
        for key in keys:
            if match := re.search(rf"\b{key}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.attributes):
                found += [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]
        return found


Computation = dict[str, Instruction]
"""Instructions by name, in order."""


class Module(NamedTuple):
    """A program: its computations, and how often each runs in one execution."""

    computations: dict[str, Computation]
    runs: dict[str, float]
    """executions of each computation; those that run for each element of an array, such as reducers, are left out"""
    top: frozenset[str]
    """computations whose instructions read and write memory: those that are not part of a fusion"""
    unknown_loops: int
    """loops whose number of iterations is not in the text; they count once"""

    def instructions(self) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, executions) of every instruction."""
        for name, runs in self.runs.items():
            for instruction in self.computations[name].values():
                yield name, instruction, runs

    def flops(self) -> float:
        """FLOPs of matrix products, 2·M·N·K each; those of kernels as they declare them."""
        return sum(runs * _flops(i, self.computations[name]) for name, i, runs in self.instructions())

    def memory_traffic(self) -> float:
        """Bytes that instructions read from HBM and write to it.

        What a fusion keeps to itself does not count, nor what lies in a TPU's vector memory. A slice that is read from
        a large array, or updated in place, counts as the slice.
        """
        return sum(
            runs * self._traffic(i, self.computations[name])
            for name, i, runs in self.instructions()
            if name in self.top
        )

    def _traffic(self, instruction: Instruction, computation: Computation) -> float:
        if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
            return 0.0
        if instruction.opcode == "fusion":
            return self._fusion_traffic(instruction)
        written = sum(a.bytes for a in instruction.arrays if not a.on_chip)
        sources = [computation[name] for name in instruction.operands if name in computation]
        read = sum(a.bytes for source in sources for a in source.arrays if not a.on_chip)
        if instruction.opcode in _SLICES:
            read = min(read, written)
        elif instruction.opcode == "dynamic-update-slice":
            update = sources[1].arrays[0] if len(sources) > 1 else None
            read = written = 0.0 if update is None else update.bytes
        elif instruction.opcode.endswith("-start"):  # its result repeats the operand
            written = max(written - read, 0.0)
        return read + written

    def _fusion_traffic(self, fusion: Instruction) -> float:
        inner = self.computations[fusion.called("calls")[0]]
        users: dict[str, list[Instruction]] = defaultdict(list)
        for instruction in inner.values():
            for name in instruction.operands:
                users[name].append(instruction)

        def uses(name: str) -> list[tuple[Instruction, str]]:
            """The instructions that read an array, and under which name."""
            found = []
            for user in users[name]:
                found += uses(user.name) if user.opcode == "bitcast" else [(user, name)]
            return found

        total = 0.0
        for parameter in inner.values():
            if parameter.opcode != "parameter":
                continue
            whole = sum(a.bytes for a in parameter.arrays if not a.on_chip)
            part = 0.0
            for user, name in uses(parameter.name):
                first = user.operands[:1] == (name,)
                if first and user.opcode in _SLICES:
                    part += sum(a.bytes for a in user.arrays)
                elif not (first and user.opcode == "dynamic-update-slice"):
                    part = whole
                    break
            total += min(part, whole)
        return total + sum(_written(name, inner) for name in _results(inner))


_NO_TRAFFIC = frozenset(
    """parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id iota
    domain opt-barrier add-dependency get-dimension-size""".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")


def _results(computation: Computation) -> tuple[str, ...]:
    root = next(i for i in computation.values() if i.root)
    return root.operands if root.opcode == "tuple" else (root.name,)


def _written(name: str, computation: Computation) -> float:
    """Bytes that a result of a fusion writes to HBM: the slice alone, if it updates one in place."""
    result = computation[name]
    if all(array.on_chip for array in result.arrays):
        return 0.0
    source = result
    while source.opcode == "bitcast" and source.operands[0] in computation:
        source = computation[source.operands[0]]
    if source.opcode == "dynamic-update-slice":
        return computation[source.operands[1]].arrays[0].bytes
    if source.opcode == "parameter":
        return 0.0
    return sum(a.bytes for a in result.arrays if not a.on_chip)


def _flops(instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode == "dot":
        left = computation[instruction.operands[0]].shape
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * math.prod(instruction.shape) * math.prod(left[int(a)] for a in axes.split(",") if a)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    if instruction.opcode == "custom-call":
        declared = re.search(r'cost_estimate\\?":\{\\?"flops\\?":\\?"?(\d+)', instruction.attributes)
        if declared:
            return float(declared[1])
    return 0.0


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """2 · output · input features · valid window positions: TPUs write every product, batched ones too, like this."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    left, right = (computation[name].shape for name in instruction.operands[:2])
    out, window = instruction.shape, re.search(r"window=\{([^}]*)\}", instruction.attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    for axis in range(len(left) - 2):
        size, length = right[labels[2].index(str(axis))], left[labels[1].index(str(axis))]
        outputs = out[labels[3].index(str(axis))]

        def of(key: str, default: str, axis: int = axis) -> list[int]:
            values = settings[key].split("x") if key in settings else [default] * (axis + 1)
            return [int(v) for v in values[axis].split("_")]

        stride, low = of("stride", "1")[0], of("pad", "0_0")[0]
        dilate, window_dilate = of("lhs_dilate", "1")[0], of("rhs_dilate", "1")[0]
        reach = (length - 1) * dilate + 1
        positions = (o * stride + w * window_dilate - low for o in range(outputs) for w in range(size))
        total *= sum(0 <= p < reach and p % dilate == 0 for p in positions)
    return total


def parse(text: str) -> Module:
    """The module of a program's text."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif instruction := _parse_instruction(line):
            current[instruction.name] = instruction
    runs: dict[str, float] = defaultdict(float)
    top, unknown = set(), 0

    def visit(name: str, times: float, fused: bool) -> None:
        nonlocal unknown
        runs[name] += times
        if not fused:
            top.add(name)
        for instruction in computations[name].values():
            if instruction.opcode == "while":
                trips = trip_count(instruction, computations[name], computations)
                unknown += trips is None
                for inner in instruction.called("body", "condition"):
                    visit(inner, times * (1 if trips is None else trips), fused)
            else:
                keys = ("to_apply",) if instruction.opcode == "call" else ()
                branches = ("branch_computations", "true_computation", "false_computation")
                inside = fused or instruction.opcode == "fusion"
                for inner in instruction.called("calls", *keys, *branches):
                    visit(inner, times, inside)

    visit(entry, 1.0, False)
    return Module(computations, dict(runs), frozenset(top), unknown)


def _parse_instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    rest = _COMMENT.sub("", found[3])
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    stop = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : stop]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], kind, opcode, operands, rest[stop + 1 :], inside, bool(found[1]))


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def arrays_of(kind: str) -> list[Array]:
    """The arrays of a type, of which a tuple has several."""
    found = []
    for dtype, shape, layout in _ARRAY.findall(kind):
        space = re.search(r"S\((\d+)\)", layout or "")
        dimensions = tuple(int(n) for n in shape.split(",") if n)
        found.append(Array(dtype, dimensions, space is not None and space[1] not in ("0", "5")))
    return found


def trip_count(loop: Instruction, computation: Computation, computations: dict[str, Computation]) -> int | None:
    """Iterations of a `while`: as XLA noted them, else from a condition `counter < limit`; None: not in the text."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = computations[loop.called("condition")[0]]
    compare = next(i for i in condition.values() if i.root)
    if compare.opcode != "compare" or not re.search(r"direction=(LT|GT)", compare.attributes):
        return None
    sides = [condition[name] for name in compare.operands]
    if "direction=GT" in compare.attributes:
        sides.reverse()
    counter, limit = sides
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return None
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    start = 0
    initial = computation[loop.operands[0]]
    if initial.opcode == "tuple":
        value = computation.get(initial.operands[index])
        start = int(value.literal) if value is not None and value.opcode == "constant" else 0
    return max(int(limit.literal) - start, 0)
