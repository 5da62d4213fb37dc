"""LoRA (Hu et al. 2022): W' = W + (α / r) A B with A: in × r and B: r × out, of which only A and B are trained.

Layers are unchanged. A and B are kept beside the model's parameters, under "lora", and the model is applied to the sum;
a stack of kernels has a stack of A and B. Loading a run adds them to its kernels, so that inference, export and further
training see an ordinary model. LoRA dropout, which the paper uses on the input of A for some tasks, is not supported.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from bertgpt.adaptation.freezing import BACKBONE, STACKS, without_network
from bertgpt.ranges import Positive, Width, check_fields
from bertgpt.types import Apply, Inputs, UserError


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels get a low-rank product, and its rank."""

    rank: Width = 8
    """r, columns of A and rows of B"""
    alpha: Positive = 16.0
    """the product is scaled by α / r"""
    targets: tuple[str, ...] = ("query", "value")
    """layers of the backbone, by the end of their paths: query, attention/query, mlp/up, …"""

    def __post_init__(self):
        check_fields(self)
        if not self.targets:
            raise UserError("Lora: targets=() names no layer")


def kernels(params: dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (path of the layer, its kernel) for every layer of the backbone."""
    for name, value in sorted(params.items()):
        if isinstance(value, dict):
            yield from kernels(value, (*prefix, name))
        elif name == "kernel" and without_network(prefix)[0] in BACKBONE:
            yield prefix, value


def init_lora(lora: Lora, params: dict, key: Key[Array, ""]) -> dict:
    """Initialises A and B for the targets among `params`, in the same tree. B is 0, so that the model starts unchanged.

    A is normal with the variance of the released code, 1 / (3 in), where the distribution is uniform. Parameters may be
    boxed with axis names; A and B then are too, so that they are sharded like their kernel.

    Raises:
      UserError: no layer matches a target.
    """
    found: dict = {}
    layers = dict(kernels(params))
    for target in lora.targets:
        if not any(matches(names, target) for names in layers):
            known = ", ".join(sorted({"/".join(names[-2:]) for names in layers}))
            raise UserError(f"Lora: targets: no layer is called {target!r}; there are {known}")
    for number, (names, kernel) in enumerate(layers.items()):
        if any(matches(names, target) for target in lora.targets):
            boxed = dataclasses.is_dataclass(kernel)
            value = kernel.value if boxed else kernel
            stacked = int(without_network(names)[0] in STACKS)
            lead, (width, *out) = value.shape[:stacked], value.shape[stacked:]
            a = jax.random.normal(jax.random.fold_in(key, number), (*lead, width, lora.rank)) * (3 * width) ** -0.5
            b = jnp.zeros((*lead, lora.rank, *out))
            if boxed:
                axes = kernel.names
                a = dataclasses.replace(kernel, value=a, names=(*axes[: stacked + 1], None))
                b = dataclasses.replace(kernel, value=b, names=(*axes[:stacked], None, *axes[stacked + 1 :]))
            tree = found
            for name in names:
                tree = tree.setdefault(name, {})
            tree |= {"a": a, "b": b}
    return found


def matches(names: tuple[str, ...], target: str) -> bool:
    """Whether a path ends with the components of `target`."""
    suffix = tuple(target.split("/"))
    return names[-len(suffix) :] == suffix


def product(a: Float[Array | np.ndarray, "*L in r"], b: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """A B, for each layer of a stack: [*L, in, r] · [*L, r, …] → [*L, in, …]."""
    lead = "l" * (a.ndim - 2)
    return jnp.einsum(f"{lead}ir,{lead}r...->{lead}i...", a, b, precision="highest")


def merge_lora(params: dict, lora: Lora | None) -> dict:
    """Replaces each W by W + (α / r) A B and drops A and B; parameters without them are returned unchanged."""
    if lora is None or "lora" not in params:
        return params

    def add(tree: dict, low_rank: dict) -> dict:
        if "a" in low_rank:
            return tree | {"kernel": tree["kernel"] + lora.alpha / lora.rank * product(low_rank["a"], low_rank["b"])}
        return tree | {name: add(tree[name], inner) for name, inner in low_rank.items()}

    return add({name: tree for name, tree in params.items() if name != "lora"}, params["lora"])


def read_merged(params: dict, lora: Lora | None) -> dict:
    """`merge_lora` for arrays on the host."""
    return params if lora is None else jax.tree.map(np.asarray, merge_lora(params, lora))


def with_lora(apply: Apply, lora: Lora | None) -> Apply:
    """An `apply` for parameters that contain A and B."""
    if lora is None:
        return apply

    def adapted(params: dict, inputs: Inputs | None = None, **named: Any) -> Any:
        return apply(merge_lora(params, lora), inputs, **named)

    return adapted
