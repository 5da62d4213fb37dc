"""How long a step takes at least: its FLOPs, memory traffic and communication, by the published peaks of the chips.

Communication follows the torus that TPUs form. A collective along an axis whose ends are joined uses both directions
at once, and one that spans several axes of the torus all of their links (Austin et al. 2025, "How to Scale Your Model",
https://jax-ml.github.io/scaling-book/sharding):

  all-gather, reduce-scatter   (n − 1)/n · V / W        V bytes of the whole array, W bytes/s over all links used
  all-reduce                   twice that
  all-to-all                   V · n / 8 / W of one axis of n chips, n / 4 where its ends are not joined
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from bertgpt.planning.collectives import Collective
from bertgpt.planning.compile import GPUS_PER_HOST, Program, Target


class Times(NamedTuple):
    """Seconds of one step, each resource on its own."""

    compute: float
    memory: float
    ici: float
    """the interconnect of a slice, or NVLink"""
    dcn: float
    """the network between slices or hosts"""

    @property
    def roofline(self) -> float:
        """If everything overlaps: the slowest resource."""
        return max(self)

    @property
    def serial(self) -> float:
        """If communication overlaps with nothing."""
        return max(self.compute, self.memory) + self.ici + self.dcn

    @property
    def bound(self) -> str:
        """The slowest resource."""
        return ("compute", "HBM", "ICI", "DCN")[int(np.argmax(self))]


def times_of(program: Program, mesh: jax.sharding.Mesh, target: Target, least: float = 0.0) -> Times:
    """The times of a step on a target whose chip is known.

    Args:
      program: the compiled step.
      mesh: what it was compiled for.
      target: the devices.
      least: FLOPs of a device as written: kernels do not declare all of theirs, which the program's text then lacks.
    """
    ici = dcn = 0.0
    for collective in program.collectives:
        near, far = communication(collective, mesh, target)
        ici, dcn = ici + collective.runs * near, dcn + collective.runs * far
    chip = target.chip
    return Times(max(program.flops, least) / chip.flops, program.traffic / chip.bandwidth, ici, dcn)


def communication(collective: Collective, mesh: jax.sharding.Mesh, target: Target) -> tuple[float, float]:
    """Seconds that one collective takes (within slices, between them)."""
    order = list(mesh.devices.flat)
    places = [order[i] for i in collective.group]
    slices = [slice_of(device, target) for device in places]
    number = len(set(slices))
    near = places if number == 1 else [d for d, s in zip(places, slices, strict=True) if s == slices[0]]
    within = seconds_within(collective, near, target) if len(near) > 1 else 0.0
    if number == 1:
        return within, 0.0
    # Each chip exchanges its share of the array with the same chip of the other slices.
    share = collective.bytes / len(near)
    factor = {"all-reduce": 2 * (number - 1) / number, "collective-permute": 1.0}
    return within, share * factor.get(collective.kind, (number - 1) / number) / target.chip.network


def slice_of(device: jax.Device, target: Target) -> int:
    """The slice of a device; of a GPU its host."""
    if target.chip.torus is None:
        return device.id // GPUS_PER_HOST
    return device.slice_index if target.slices > 1 else 0


def seconds_within(collective: Collective, devices: Sequence[jax.Device], target: Target) -> float:
    """Seconds of a collective between devices of one slice."""
    chip, n = target.chip, len(devices)
    sent = collective._replace(group=tuple(range(n))).sent
    if chip.torus is None:
        return sent / chip.link
    everyone = np.array([device.coords for device in target.devices])
    sizes = everyone.max(axis=0) + 1
    coordinates = np.array([device.coords for device in devices])
    bandwidth, slowest = 0.0, 0.0
    for axis in range(coordinates.shape[1]):
        places = np.unique(coordinates[:, axis])
        if len(places) == 1:
            continue
        stride = int(np.diff(places).min())  # groups that interleave share the links
        least = chip.torus[axis] if axis < len(chip.torus) else 1
        joined = sizes[axis] % least == 0 and len(places) * stride == sizes[axis]
        bandwidth += chip.link * (2 if joined else 1) / stride
        slowest = max(slowest, collective.bytes * len(places) * stride / (8 if joined else 4) / chip.link)
    if collective.kind == "collective-permute":
        return collective.bytes / chip.link
    if bandwidth == 0.0:
        return 0.0
    return slowest if collective.kind.endswith("all-to-all") else sent / bandwidth


def network_of(collective: Collective, mesh: jax.sharding.Mesh, target: Target) -> str:
    """ "ICI" within a slice, "DCN" if it leaves it; of GPUs "NVLink" and "network"; of hosts "host"."""
    if target.chip is None:
        return "host"
    order = list(mesh.devices.flat)
    far = len({slice_of(order[i], target) for i in collective.group}) > 1
    return (("ICI", "DCN") if target.chip.torus else ("NVLink", "network"))[far]
