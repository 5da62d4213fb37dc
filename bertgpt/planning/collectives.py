"""Communication in a compiled program: which collectives, over which mesh axes, how many bytes, how often."""

import itertools
import math
import re
from collections import defaultdict
from typing import NamedTuple

import jax
import numpy as np

from bertgpt.planning.hlo import Instruction, Module, arrays_of, parse

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str
    """one of KINDS"""
    axes: tuple[str, ...]
    """mesh axes that it communicates over; ("?",) if its groups are not those of any axes"""
    bytes: float
    """size on one device of what is reduced, gathered or exchanged: the larger one of operand and result"""
    runs: float
    """executions in one run of the program"""
    group: tuple[int, ...]
    """the first group of devices, as positions in the mesh"""
    op_name: str
    """the JAX operation that it comes from"""

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one execution, as the optimal ring algorithm does."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return share * self.bytes


def collectives_of(program: Module | str, mesh: jax.sharding.Mesh) -> list[Collective]:
    """The collectives of a compiled program.

    XLA for TPUs writes a reduce-scatter as a fusion of an all-reduce and a slice, and spreads one asynchronous
    collective over several fusions: both appear here as what they are, once.

    Args:
      program: the text of the program, or the module that `hlo.parse` made of it.
      mesh: the mesh that it was compiled for.

    Returns:
      One entry for each operation, a collective of several arrays being one operation. Those within one device are
      left out.
    """
    module = parse(program) if isinstance(program, str) else program
    axes_of = _axes_of_groups(mesh)
    pieces: dict[tuple[str, str], Collective] = {}
    found = []
    for computation, instruction, runs in module.instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind == "send" and (between := _between_slices(instruction, runs, mesh)):
            found.append(between)
        if kind not in KINDS:
            continue
        inside = module.computations[computation]
        sources = [inside[name] for name in instruction.operands if name in inside]
        size = max(_size(instruction), sum(a.bytes for s in sources for a in s.arrays))
        if kind == "all-reduce" and _keeps_a_slice(computation, module):
            kind = "reduce-scatter"
        groups = _groups(instruction, mesh.size)
        if groups.shape[1] < 2:
            continue
        if kind != "collective-permute" and groups.size < mesh.size:  # those of one slice stand for those of all
            groups = np.concatenate([groups + start for start in range(0, mesh.size, groups.size)])
        axes = axes_of.get(_key(groups), ("?",))
        if kind == "collective-permute":
            axes = _axes_of_pairs(groups, mesh)
        operation = re.search(r'op_name="([^"]*)"', instruction.attributes)
        group = tuple(int(i) for i in groups[0])
        collective = Collective(kind, axes, size, runs, group, operation[1] if operation else "")
        chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
        if chain is None:
            found.append(collective)
        else:  # the start, steps and end of one collective
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            pieces.setdefault((channel[1] if channel else "", chain[1]), collective)
    return found + list(pieces.values())


def _between_slices(send: Instruction, runs: float, mesh: jax.sharding.Mesh) -> Collective | None:
    """The collective over slices that a TPU hands to its hosts, in which each device takes part with its share."""
    transfer = re.search(r'_xla_megascale_transfer_type="([A-Z_]+)"', send.attributes)
    if transfer is None:
        return None
    kind = transfer[1].lower().replace("_", "-")
    slices = mesh.shape["dcn"]
    group = tuple(range(0, mesh.size, mesh.size // slices))
    return Collective(kind if kind in KINDS else "collective-permute", ("dcn",), send.arrays[0].bytes, runs, group, "")


class Total(NamedTuple):
    """All collectives of one kind over the same axes."""

    count: float
    """executions"""
    bytes: float
    """bytes of the arrays on one device, over all executions"""
    sent: float
    """bytes that a device sends"""


def totals(found: list[Collective]) -> dict[tuple[str, tuple[str, ...]], Total]:
    """(kind, axes) → sums, the most bytes first."""
    sums: dict[tuple[str, tuple[str, ...]], Total] = defaultdict(lambda: Total(0, 0, 0))
    for item in found:
        own = (item.runs, item.runs * item.bytes, item.runs * item.sent)
        sums[item.kind, item.axes] = Total(*(a + b for a, b in zip(sums[item.kind, item.axes], own, strict=True)))
    return dict(sorted(sums.items(), key=lambda entry: -entry[1].sent))


def _size(instruction: Instruction) -> float:
    """Bytes of a collective's result. That of an asynchronous start is (operands, results, …)."""
    if not instruction.opcode.endswith("-start") or not instruction.type.startswith("("):
        return sum(a.bytes for a in instruction.arrays)
    if instruction.opcode == "all-reduce-start":
        return sum(a.bytes for a in instruction.arrays)
    parts = re.findall(r"\([^()]*(?:\([^()]*\)[^()]*)*\)|[a-z]\w*\[[^\]]*\](?:\{[^}]*\})?", instruction.type[1:-1])
    return sum(a.bytes for a in arrays_of(parts[1])) if len(parts) > 1 else 0.0


def _keeps_a_slice(name: str, module: Module) -> bool:
    """Whether a fused computation is an all-reduce of which each device keeps its slice."""
    if name in module.top:
        return False
    inside = module.computations[name]
    reduced = max((sum(a.bytes for a in i.arrays) for i in inside.values() if i.opcode == "all-reduce"), default=0)
    kept = next(sum(a.bytes for a in i.arrays) for i in inside.values() if i.root)
    return "dynamic-slice" in {i.opcode for i in inside.values()} and kept < reduced


def _groups(instruction: Instruction, num_devices: int) -> np.ndarray:
    """The groups of devices [G, n], or the pairs [N, 2] of a permutation."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return np.array([[int(n) for n in re.findall(r"\d+", pair)] for pair in pairs[1].split("},{")])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        return _mesh_groups(mesh[1], mesh[2])
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, sizes = ([int(n) for n in part.split(",")] for part in tiled.groups()[:2])
        order = [int(n) for n in tiled[3].split(",")] if tiled[3] else range(len(sizes))
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(shape)
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", text)
    if listed is None:
        return np.arange(num_devices)[None]  # no groups: all devices
    return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])


def _mesh_groups(sizes: str, chosen: str) -> np.ndarray:
    """Groups written as axes of a mesh: `'a'=4,'b'=4` and `'b'`, or a part of an axis, `'b':(2)2`."""
    mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    dimensions: list[int] = []
    over: list[int] = []
    for name, size in mesh.items():
        taken = sorted((int(before), int(length)) for own, before, length in parts if own == name and before)
        whole = any(own == name and not before for own, before, _ in parts)
        done = 1
        for before, length in taken:
            dimensions += [before // done, length]
            over.append(len(dimensions) - 1)
            done = before * length
        dimensions.append(size // done)
        if whole:
            over.append(len(dimensions) - 1)
    ids = np.arange(math.prod(mesh.values())).reshape(dimensions)
    rest = [axis for axis in range(len(dimensions)) if axis not in over]
    return ids.transpose(rest + over).reshape(-1, math.prod(dimensions[axis] for axis in over))


def _key(groups: np.ndarray) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(map(int, group)) for group in groups)


def _axes_of_groups(mesh: jax.sharding.Mesh) -> dict[frozenset[frozenset[int]], tuple[str, ...]]:
    """Groups of devices → the mesh axes that they span. Axes of size 1 span nothing."""
    names = [name for name, size in mesh.shape.items() if size > 1]
    ids = np.arange(mesh.size).reshape([mesh.shape[name] for name in names])
    found = {}
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(range(len(names)), count):
            rest = [axis for axis in range(len(names)) if axis not in chosen]
            groups = ids.transpose(*rest, *chosen).reshape(-1, math.prod(ids.shape[axis] for axis in chosen))
            found[_key(groups)] = tuple(names[axis] for axis in chosen)
    return found


def _axes_of_pairs(pairs: np.ndarray, mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The mesh axes along which a permutation moves data."""
    places = [np.unravel_index(column, tuple(mesh.shape.values())) for column in pairs.T]
    moved = (np.any(source != target) for source, target in zip(*places, strict=True))
    return tuple(name for name, differs in zip(mesh.shape, moved, strict=True) if differs)
