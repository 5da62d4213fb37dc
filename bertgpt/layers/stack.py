"""A stack of equal blocks, with one parameter layout however it is compiled."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from bertgpt.layers.linear import round_kernels


def stack(
    block: type[nn.Module], num_layers: int, scan: bool, remat: bool = False, shared: bool = False
) -> type[nn.Module]:
    """The block applied `num_layers` times, with one parameter layout: every leaf has a leading layer axis.

    `scan=False` unrolls the same loop at compile time: faster steps, longer compilation, the same numbers.
    `remat` recomputes each block's activations in the backward pass instead of storing them: a third more arithmetic,
    the memory of one block. `shared` applies the parameters of one block, without a layer axis, each time (ALBERT).
    """
    return nn.scan(
        nn.remat(block, prevent_cse=not scan) if remat else block,
        variable_axes={"intermediates": 0, "router": 0} if shared else {"params": 0, "intermediates": 0, "router": 0},
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
    for layer in range(len(params)):
        x, _ = block.apply({"params": layer_params(params, layer)}, x, *args)
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


def for_inference(params: dict, stacks: tuple[str, ...], dtype: str) -> dict:
    """Parameters arranged for inference: layers split, and kernels rounded once if `dtype` is bfloat16."""
    params = split_layers(params, stacks)
    return round_kernels(params) if dtype == "bfloat16" else params
