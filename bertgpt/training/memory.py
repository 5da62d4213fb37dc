"""Refuses what does not fit into memory before it is allocated; else the system kills the process without a message."""

import math
import os

import jax

from bertgpt.config import Experiment, leaves
from bertgpt.ranges import REMAT_POLICIES
from bertgpt.sharding import PARAMETER_AXES, num_shards
from bertgpt.types import UserError

FIELDS = 4  # of every text: TEXT_SPEC


def host_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_memory(device: jax.Device) -> int:
    """Bytes that one device can hold; CPU devices share the memory of the machine."""
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return limit or host_memory() // jax.local_device_count(backend=device.platform)


def check_batch_memory(experiment: Experiment) -> None:
    """Raises UserError if one batch of token ids is larger than the memory of this machine."""
    size = experiment.batch_size * experiment.data.seq_len * FIELDS * 4
    if size > host_memory():
        raise UserError(
            f"batch_size={experiment.batch_size} × data.seq_len={experiment.data.seq_len} tokens take {gib(size)} of"
            f" memory, and this machine has {gib(host_memory())}"
        )


def check_state_memory(params: object, opt: object, mesh: jax.sharding.Mesh) -> None:
    """Checks that parameters, their gradients and the optimiser's state fit into the devices, from shapes alone.

    Raises:
      UserError: they do not, even if everything is split over all axes that split parameters.
    """
    size = (2 * size_in_bytes(params) + size_in_bytes(opt)) // num_shards(mesh.shape, PARAMETER_AXES)
    limit = device_memory(mesh.local_devices[0])
    if size > limit:
        raise UserError(
            f"model: parameters, gradients and optimiser state take {gib(size)} on each device, which has {gib(limit)};"
            " make the model smaller, or split it over devices (mesh.fsdp, mesh.tensor; experts: mesh.expert)"
        )


def check_program_memory(program: jax.stages.Compiled, device: jax.Device, experiment: Experiment) -> None:
    """Raises UserError if a compiled step needs more memory than a device has."""
    found = program.memory_analysis()
    size = 0 if found is None else found.argument_size_in_bytes + found.temp_size_in_bytes
    limit = device_memory(device)
    if size > limit:
        raise UserError(
            f"a training step takes {gib(size)} on each device, which has {gib(limit)}; lower batch_size or"
            f" data.seq_len, raise microbatches{remat_advice(experiment)}"
        )


def remat_advice(experiment: Experiment) -> str:
    """The rematerialisation policies that take less memory, in words that end a list; "" if there is none."""
    for path, value in leaves(experiment.model, "model."):
        if path.rpartition(".")[2] == "remat" and value != "full":
            smaller = REMAT_POLICIES[REMAT_POLICIES.index(value) + 1 :]
            choices = "full (the least memory)" if smaller == ("full",) else "names or, for the least memory, full"
            return f", or set {path} to {choices}"
    return ""


def size_in_bytes(tree: object) -> int:
    """Bytes of the arrays of a tree, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
