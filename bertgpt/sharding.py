"""Sharding: a closed vocabulary of logical axes, one table of rules, and the meshes they map to.

Every parameter and every constrained activation names its dimensions with axes from `RULES`. The table says which mesh
axes split a dimension; a mesh axis of size 1 splits nothing, so that one table serves every layout:
`Mesh(data=8)` replicates parameters, `Mesh(fsdp=8)` shards them, `Mesh(data=2, tensor=4)` splits heads and MLPs.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bertgpt.config import Mesh
from bertgpt.types import UserError

# logical axis → mesh axes that split it (None: never split).
RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "seq": None,
    "expert_batch": "data",  # once tokens have gone to their experts, which are spread over fsdp
    # parameters
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
    "positions": None,
    "types": None,
    "labels": None,
    "expert": "fsdp",
    "expert_embed": None,
    "norm": None,
}


def spec(names: Sequence[str | None]) -> P:
    """Logical axis names → PartitionSpec. `None` is a dimension without a name, which is never split.

    Raises:
      KeyError: a name is not in the vocabulary. A misspelt axis must not be replicated silently.
    """
    return P(*(None if name is None else RULES[name] for name in names))


def make_mesh(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Arranges the devices (default: all) as data × fsdp × tensor.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    wrong = f"mesh {sizes} does not fit {len(devices)} device(s)"
    if len(free) > 1 or known < 1 or len(devices) % known:
        raise UserError(wrong)
    for axis in free:
        sizes[axis] = len(devices) // known
    if np.prod(list(sizes.values())) != len(devices):
        raise UserError(wrong)
    # Auto, not Explicit: the compiler shards what is not constrained.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=(AxisType.Auto,) * len(sizes))


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Constrains an activation's sharding under `jax.set_mesh`; does nothing outside it (a notebook, one device)."""
    layout = spec(names)
    if not jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, layout)


def state_shardings(abstract: object, mesh: jax.sharding.Mesh) -> object:
    """Shardings of a tree of (boxed) parameters, the result of `jax.eval_shape` of a flax init.

    Raises:
      UserError: a dimension is not divisible by its mesh axes; the message names the parameter.
    """

    def one(path: tuple, leaf: object) -> NamedSharding:
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else (None,) * len(leaf.shape)
        shape = leaf.value.shape if isinstance(leaf, nn.LogicallyPartitioned) else leaf.shape
        if len(shape) != len(names) or shape == (1,):
            return NamedSharding(mesh, P())  # Adafactor's row and column statistics are boxed like their matrix
        layout = spec(names)
        for size, name, axes in zip(shape, names, layout, strict=True):
            num_shards = int(np.prod([mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())]))
            if size % num_shards:
                raise UserError(
                    f"{jax.tree_util.keystr(path)}: {name}={size} is not divisible by mesh axis {axes}={num_shards}"
                )
        return NamedSharding(mesh, layout)

    return jax.tree_util.tree_map_with_path(one, abstract, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts a host batch on the devices, split over data and fsdp. Every process passes the same global batch."""
    sharding = NamedSharding(mesh, spec(("batch",)))
    return {
        name: jax.make_array_from_callback(array.shape, sharding, lambda index, array=array: array[index])
        for name, array in batch.items()
    }
