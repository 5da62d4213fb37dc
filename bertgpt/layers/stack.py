"""A stack of equal blocks, with one parameter layout however it is compiled."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bertgpt.layers.linear import cpu_has_bfloat16, round_kernels
from bertgpt.ranges import Remat, remat_policy
from bertgpt.sharding import target_platform

# What jax.checkpoint keeps of each block, beside its input. Products with a batch dimension, of queries and keys, are
# recomputed by "dots": they are the only ones whose results grow with the square of the length.
_SAVED = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("qkv", "context", "mlp_in"),
    "full": None,
}
AUXILIARY = ("intermediates", "attention", "projections", "router")
"""collections that layers write to where a caller asks for them (`Apply`)"""


def stack(
    block: type[nn.Module], num_layers: int, scan: bool, remat: Remat = "none", shared: bool = False
) -> type[nn.Module]:
    """The block applied `num_layers` times, with one parameter layout: every leaf has a leading layer axis.

    Neither `scan` nor `remat` changes the numbers.

    Args:
      block: the module; its `__call__` returns (states, None or a per-layer output).
      num_layers: how often it is applied.
      scan: compile one block and loop over it. False unrolls the same loop at compile time: faster steps, longer
        compilation.
      remat: which activations of a block the backward pass finds stored, instead of recomputing them. With "none", all
        are stored. With "dots", the results of the dense layers. With "names", queries, keys and values, attention's
        output before its projection ("context"), and the input of the feed-forward network's nonlinearity: only the
        projections that write to the residual stream are computed twice. With "full", only the block's input: a third
        more arithmetic, the memory of one block.
      shared: apply the parameters of one block, without a layer axis, each time (ALBERT).
    """
    policy = remat_policy(remat)
    if policy != "none":
        block = nn.remat(block, prevent_cse=not scan, policy=_SAVED[policy])
    return nn.scan(
        block,
        variable_axes=dict.fromkeys(AUXILIARY if shared else ("params", *AUXILIARY), 0),
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        unroll=1 if scan else num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def layer_params(params: dict, layer: int) -> dict:
    """Parameters of one layer of a stack, stacked or split."""
    return params[str(layer)] if str(layer) in params else jax.tree.map(lambda leaf: leaf[layer], params)


def run_stack(layers: nn.Module, block: nn.Module, x: Float[Array, "B S D"], *args: Any) -> Float[Array, "B S D"]:
    """Applies all layers: the module that `stack` made or, if its parameters are split, `block` without dropout."""
    params = layers.variables["params"] if layers.has_variable("params", "0") else {}
    if not params:
        return layers(x, *args)[0]
    wanted = [name for name in AUXILIARY if layers.is_mutable_collection(name)]
    outputs = []
    for layer in range(len(params)):
        (x, _), written = block.apply({"params": layer_params(params, layer)}, x, *args, mutable=wanted)
        outputs.append(written)
    for name in wanted:  # with a leading axis of layers, as the stack's own module writes them
        stacked = jax.tree.map(lambda *layer: jnp.stack(layer), *(written.get(name, {}) for written in outputs))
        for key, value in stacked.items():
            layers.put_variable(name, key, value)
    return x


def split_layers(params: dict, paths: tuple[str, ...]) -> dict:
    """Splits the stacks at these paths into layers, {"0": …, "1": …}, for inference; those that are split stay so.

    A program that unrolls a stack slices it, and the compiler copies the slices: a decoding step of GPT-2 then moved
    1.5 GB in place of the 500 MB of its parameters.
    """

    def split(tree: dict, path: list[str]) -> dict:
        if path:
            return tree | {path[0]: split(tree[path[0]], path[1:])}
        if "0" in tree:  # as `load` arranges them
            return tree
        number = len(jax.tree.leaves(tree)[0])
        return {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(number)}

    for path in paths:
        params = split(params, path.split("/"))
    return params


def join_layers(params: dict, paths: tuple[str, ...]) -> dict:
    """The inverse of `split_layers`: stacks whose leaves have a leading axis of layers; those that have it stay so."""

    def join(tree: dict, path: list[str]) -> dict:
        if path:
            return tree | {path[0]: join(tree[path[0]], path[1:])}
        if "0" not in tree:
            return tree
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(tree[str(i)] for i in range(len(tree))))

    for path in paths:
        params = join(params, path.split("/"))
    return params


def for_inference(params: dict, stacks: tuple[str, ...], dtype: str) -> dict:
    """Parameters arranged for inference: layers split; kernels rounded once, if products are computed in bfloat16."""
    params = split_layers(params, stacks)
    rounds = dtype == "bfloat16" and (target_platform() != "cpu" or cpu_has_bfloat16())
    return round_kernels(params) if rounds else params
