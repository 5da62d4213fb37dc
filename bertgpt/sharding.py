"""Sharding: a closed vocabulary of logical axes, one table of rules, and the meshes they map to.

Every parameter and every constrained activation names its dimensions with axes from `RULES`. The table says which mesh
axes split a dimension; a mesh axis of size 1 splits nothing, so that one table serves every layout:
`Mesh(data=8)` replicates parameters, `Mesh(fsdp=8)` shards them, `Mesh(data=2, tensor=4)` splits heads and MLPs.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bertgpt.config import Mesh
from bertgpt.types import Params, UserError

AXES = tuple(field.name for field in dataclasses.fields(Mesh))
"""mesh axes, from the slowest network to the fastest"""
BATCH_AXES = ("dcn", "data", "fsdp", "expert")
"""mesh axes that split the batch"""
PARAMETER_AXES = ("fsdp", "expert", "tensor")
"""mesh axes that split parameters and optimiser state"""

# logical axis → mesh axes that split it (None: never split).
RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": BATCH_AXES,
    "seq": "sequence",
    "expert_batch": ("dcn", "data", "fsdp"),  # once tokens have gone to their experts
    # parameters
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
    "positions": None,
    "patch": None,
    "types": None,
    "labels": None,
    "expert": "expert",
    "norm": None,
}

LARGEST_WHOLE = 64 * 1024
"""bytes of an array of the state that every device may hold, on a mesh that splits parameters"""

# logical axis of parameters → the field of a model that says how long it is, for messages.
FIELDS = {
    "embed": "model.d_model",
    "mlp": "model.d_ff",
    "heads": "model.num_heads",
    "vocab": "model.vocab_size",
    "expert": "model.experts.num_experts",
}


def num_shards(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    """Into how many parts these axes of a mesh of these sizes split something; an absent axis splits nothing."""
    return math.prod(sizes.get(axis, 1) for axis in axes)


def spec(names: Sequence[str | None]) -> P:
    """Logical axis names → PartitionSpec. `None` is a dimension without a name, which is never split.

    Raises:
      KeyError: a name is not in the vocabulary. A misspelt axis must not be replicated silently.
    """
    return P(*(None if name is None else RULES[name] for name in names))


def make_mesh(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Arranges the devices (default: all) as dcn × data × fsdp × expert × sequence × tensor.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `dcn` is not the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: vars(mesh)[axis] for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    shown = " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "of one device"
    wrong = f"mesh {shown} does not fit {len(devices)} device(s): "
    if len(free) > 1:
        raise UserError(f"{wrong}only one axis may be -1, not {' and '.join(free)}; set --mesh.{free[0]} 1")
    if zero := [axis for axis, size in sizes.items() if size == 0]:
        raise UserError(f"{wrong}mesh.{zero[0]}=0 must be at least 1, or -1 for all that are left")
    if len(devices) % known or (not free and known != len(devices)):
        rule = f"divide {len(devices)}, and the axis that is -1 takes the rest" if free else f"be {len(devices)}"
        raise UserError(f"{wrong}the product of the axes, here {known}, must {rule}")
    for axis in free:
        sizes[axis] = len(devices) // known
    # Auto, not Explicit: the compiler shards what is not constrained.
    return jax.sharding.Mesh(arrange(devices, tuple(sizes.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(devices: Sequence, sizes: tuple[int, ...]) -> np.ndarray:
    """The devices as an array of these sizes in which neighbours along the last axes are near each other.

    Where the devices belong to several slices, the first axis runs over the slices. Elsewhere, as on GPUs and CPUs,
    devices are numbered host by host, so that the first axis runs over groups of hosts by itself.

    Raises:
      UserError: there are several slices, and the first axis is not their number.
    """
    slices = len({getattr(device, "slice_index", None) for device in devices})  # only some platforms have slices
    if slices == 1:
        # Splitting a physical axis is the last resort of `create_device_mesh`: without it, it raises.
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] != slices:
        raise UserError(f"mesh.dcn={sizes[0]} must be {slices}, the number of slices that the devices belong to")
    one = (1,) * (len(sizes) - 1)
    return mesh_utils.create_hybrid_device_mesh(
        (1, *sizes[1:]), (slices, *one), devices, allow_split_physical_axes=True
    )


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Constrains an activation's sharding under `jax.set_mesh`; does nothing outside it (a notebook, one device)."""
    layout = spec(names)
    if not jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, layout)


def constrain_logits(logits: jax.Array) -> jax.Array:
    """Constrains logits [B, V] or [B, S, V] over the vocabulary."""
    return constrain(logits, ("batch", "seq", "vocab") if logits.ndim == 3 else ("batch", "vocab"))


def target_platform() -> str:
    """The platform that the traced program is for, such as "cpu": that of its mesh (`jax.set_mesh`), else the default.

    Not `jax.default_backend()`: a program that is compiled ahead of time runs elsewhere.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def splits(axis: str) -> bool:
    """Whether the mesh (`jax.set_mesh`) has more than one device along an axis."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1) > 1


def stored(names: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]) -> P:
    """The layout of a parameter on a mesh of these sizes: that of `spec`, except for vocabularies that do not divide.

    Published vocabularies have sizes such as 50,257. Such a table is split along its width instead, and its bias not at
    all.
    """
    layout = list(spec(names))
    for i, (name, axis) in enumerate(zip(names, layout, strict=True)):
        if name == "vocab" and shape[i] % sizes.get(axis, 1):
            layout[i] = None
            if "embed" in names:
                width = names.index("embed")
                layout[width] = (layout[width], axis)
    return P(*layout)


def constrain_gathered(parameter: Params, names: Sequence[str | None]) -> Params:
    """Constrains a parameter, and its gradient, to its layout with the axis "embed" gathered."""
    sizes = jax.sharding.get_abstract_mesh().shape
    if num_shards(sizes, PARAMETER_AXES) == 1:
        return parameter
    layout = stored(names, parameter.shape, sizes)
    used = P(*(None if name == "embed" else axes for name, axes in zip(names, layout, strict=True)))
    return jax.lax.with_sharding_constraint(parameter, used)


def gather(parameter: Params, names: tuple[str | None, ...]) -> Params:
    """A parameter as its layer uses it: gathered over fsdp, still split over the other axes.

    Weights of 8 bits, which are a pair of arrays, are for inference on meshes that split no parameters.

    Its gradient leaves as the parameter is stored, so that it is scattered as it is reduced. Without these constraints
    the compiler may also gather activations, or split them along their width.
    """
    split = num_shards(jax.sharding.get_abstract_mesh().shape, PARAMETER_AXES) > 1
    return _gather(parameter, names) if split else parameter


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(parameter: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    return constrain_gathered(parameter, names)


def _gather_forward(parameter: jax.Array, names: tuple[str | None, ...]) -> tuple[jax.Array, None]:
    return constrain_gathered(parameter, names), None


def _gather_backward(names: tuple[str | None, ...], _: None, gradient: jax.Array) -> tuple[jax.Array]:
    layout = stored(names, gradient.shape, jax.sharding.get_abstract_mesh().shape)
    return (jax.lax.with_sharding_constraint(gradient, layout),)


_gather.defvjp(_gather_forward, _gather_backward)


def state_shardings(abstract: object, mesh: jax.sharding.Mesh) -> object:
    """Shardings of a tree of (boxed) parameters, the result of `jax.eval_shape` of a flax init.

    The optimiser's moments have the layout of their parameters, and Adafactor's row and column statistics that of the
    dimensions that they have left. Where the rules would leave an array of more than `LARGEST_WHOLE` bytes on every
    device, such as the norms of a deep stack, it is split along its longest dimension that divides.

    Raises:
      UserError: a dimension is not divisible by its mesh axes; the message names the parameter.
    """
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=is_box)
    boxes = {
        _keys(path): (box.names, box.value.shape)
        for path, box in leaves
        if is_box(box) and len(box.names) == len(box.value.shape)
    }

    def one(path: tuple, leaf: object) -> NamedSharding:
        value = leaf.value if is_box(leaf) else leaf
        names, shape = boxes.get(_keys(path), ((None,) * len(value.shape), value.shape)) if is_box(leaf) else ((), ())
        if shape == value.shape:
            layout = stored(names, shape, mesh.shape)
            check_divides(jax.tree_util.keystr(path), names, shape, layout, mesh.shape)
        else:
            layout = _of_statistic(value.shape, names, shape, mesh.shape)
        return NamedSharding(mesh, _split_if_large(value, layout, mesh.shape))

    return jax.tree_util.tree_map_with_path(one, abstract, is_leaf=is_box)


def _keys(path: tuple) -> tuple[str, ...]:
    """Names of a parameter in the path of it, or of its moment."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def check_divides(
    parameter: str, names: Sequence[str | None], shape: Sequence[int], layout: P, sizes: Mapping[str, int]
) -> None:
    """Raises UserError if a dimension is not divisible by the axes of the mesh that split it."""
    for size, name, axes in zip(shape, names, layout, strict=True):
        parts = num_shards(sizes, _tuple(axes))
        if size % parts:
            said = " × ".join(f"mesh.{axis}={sizes[axis]}" for axis in _tuple(axes))
            raise UserError(f"{parameter}: {FIELDS.get(name, name)}={size} is not divisible by {said}")


def _of_statistic(
    shape: Sequence[int], names: Sequence[str | None], whole: Sequence[int], sizes: Mapping[str, int]
) -> P:
    """The layout of a statistic over some dimensions of a parameter (`names`, `whole`): those left are told by size."""
    # Adafactor counts a projection to heads as one matrix: heads · head_dim is a dimension of its own.
    found = {math.prod(whole[-2:]): names[-2]} if len(whole) > 1 else {}
    found |= dict(zip(reversed(whole), reversed(names), strict=True))
    layout: list[str | tuple[str, ...] | None] = []
    for size in shape:
        axes = None if found.get(size) is None else RULES[found[size]]
        divides = size % num_shards(sizes, _tuple(axes)) == 0
        layout.append(axes if divides and axes not in layout else None)
    return P(*layout)


def _split_if_large(value: object, layout: P, sizes: Mapping[str, int]) -> P:
    if num_shards(sizes, [axis for axes in layout for axis in _tuple(axes)]) > 1:
        return layout
    if math.prod(value.shape) * value.dtype.itemsize <= LARGEST_WHOLE:
        return layout
    for axis in PARAMETER_AXES:
        for i in sorted(range(len(value.shape)), key=lambda i: -value.shape[i]):
            if sizes[axis] > 1 and value.shape[i] % sizes[axis] == 0:
                return P(*(axis if i == j else None for j in range(len(value.shape))))
    return layout


@functools.cache
def host_shards(mesh: jax.sharding.Mesh) -> tuple[tuple[int, ...], int]:
    """(parts of a batch that the devices of this host hold, in ascending order; number of all parts)."""
    total = num_shards(mesh.shape, BATCH_AXES)
    indices = NamedSharding(mesh, spec(("batch",))).addressable_devices_indices_map((total,))
    return tuple(sorted({index[0].start or 0 for index in indices.values()})), total


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts a batch on the devices, split over `BATCH_AXES`. Every host passes its own parts, those of `host_shards`."""
    sharding = NamedSharding(mesh, spec(("batch",)))
    own, total = host_shards(mesh)

    def put(array: np.ndarray) -> jax.Array:
        parts = np.split(array, len(own))
        size = len(parts[0])
        held = {shard * size: part for shard, part in zip(own, parts, strict=True)}
        shape = (total * size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda index: held[index[0].start or 0])

    return {name: put(array) for name, array in batch.items()}


def fetch(tree: object) -> object:
    """The values of a tree of arrays as numpy arrays in every process, also of arrays that lie in several processes."""

    def whole(array: jax.Array) -> jax.Array | np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))
