"""Weights of 8 bits, symmetric for each output channel, products with them, and trees of parameters that hold them.

    ŵ[i, j] = s[j] q[i, j],   s[j] = max_i abs(w[i, j]) / 127,   q = round(w / s),   so that abs(w − ŵ) ≤ s / 2

Where that is faster, activations are rounded to 8 bits as well, each row x by its own scale t = max abs(x) / 127, and
the product of integers is exact: y[j] = t s[j] Σ_i round(x[i] / t) q[i, j] (Dettmers et al. 2022, "LLM.int8()", §2.1,
which calls these scales vector-wise).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8
from numpy.typing import DTypeLike

from bertgpt.types import Params

LARGEST = 127
"""−128 is not used, so that w and −w have the same error"""
HEADS = frozenset("pooler classifier tagger span_head nsp_head rtd_head".split())
"""parameters that stay float32, as all of a task's own (`task_…`) do: they are small, and they decide"""
DYNAMIC_ROWS = 4
"""with fewer rows, rounding the activations takes longer than the product saves"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An array that is stored in 8 bits. As an index it gives float32: rows of a table are looked up as in an array."""

    values: Params
    """q, int8, of the array's shape; the first leaf, because flax compares its shape with the declared one"""
    scale: Params
    """s, float32, of the same rank, 1 along the axis that is summed over"""

    def __getitem__(self, index: Int[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        return self.values[index].astype(self.scale.dtype) * self.scale[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.values.shape

    def matrix(self) -> "Quantized":
        """All axes but the first as one: a kernel [D, heads, width] as [D, F]."""
        return Quantized(*(x.reshape(x.shape[0], -1) for x in (self.values, self.scale)))

    def astype(self, dtype: DTypeLike) -> Float[Array | np.ndarray, "..."]:
        """ŵ as an array."""
        return self.values.astype(dtype) * self.scale.astype(dtype)


def quantize(array: Float[np.ndarray, "..."], axis: int) -> Quantized:
    """Rounds an array on the host, with a scale for each index of all axes but `axis`, which products sum over."""
    largest = np.abs(array).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)
    codes = np.clip(np.rint(array.astype(np.float64) / scale), -LARGEST, LARGEST)
    return Quantized(codes.astype(np.int8), scale)


def quantized_matmul(x: Float[Array, "N D"], w: Quantized, platform: str) -> Float[Array, "N F"]:
    """x ŵ for a kernel w [D, F] with scales [1, F].

    On CPUs both factors are of 8 bits if there are 4 rows or more. Measured on one core with VNNI, in milliseconds, for
    D, F = 768, 3072 and 1, 4, 16, 64, 512 rows: float32 0.13, 0.14, 0.53, 1.5, 12.0; this 0.20, 0.16, 0.19, 0.47, 3.0;
    weights alone in 8 bits 0.20, 0.24, 0.59, 1.9, 14.7. On other devices the weights alone are rounded: nothing was
    measured there.
    """
    if platform == "cpu" and (not isinstance(x.shape[0], int) or x.shape[0] >= DYNAMIC_ROWS):
        return _dynamic(x, w.values, w.scale)
    return (x @ w.values.astype(x.dtype)) * w.scale.astype(x.dtype)


@jax.custom_vjp
def _dynamic(x: Float[Array, "N D"], values: Int8[Array, "D F"], scale: Float[Array, "1 F"]) -> Float[Array, "N F"]:
    y = x.astype(scale.dtype)
    largest = jnp.max(jnp.abs(y), axis=1, keepdims=True)
    step = jnp.where(largest > 0, largest / LARGEST, 1.0)
    codes = jnp.round(y / step).astype(jnp.int8)
    product = jax.lax.dot_general(codes, values, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return (product.astype(scale.dtype) * step * scale).astype(x.dtype)


def _forward(x: Array, values: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dynamic(x, values, scale), (values, scale)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, np.ndarray, Array]:
    """As if the activations were not rounded, whose gradient is 0 almost everywhere: saliency maps need one."""
    values, scale = saved
    weights = Quantized(values, scale).astype(gradient.dtype)
    return gradient @ weights.T, np.zeros(values.shape, jax.dtypes.float0), jnp.zeros_like(scale)


_dynamic.defvjp(_forward, _backward)


def quantize_params(params: Params) -> Params:
    """Parameters on the host, as checkpoints have them, with `Quantized` in place of kernels and embedding tables."""

    def quantized(path: tuple[str, ...], leaf: Params) -> Params:
        axis = summed_axis(path, leaf.ndim)
        return leaf if axis is None else quantize(leaf, axis)

    return _map(params, quantized)


def summed_axis(path: tuple[str, ...], ndim: int) -> int | None:
    """The axis that products with a parameter sum over; None if it stays float32.

    Kernels [D, …] have it in front, behind the axis of layers if they are stacked; those of experts [E, D, F] behind
    the axis of experts. Embedding tables [V, D] are looked up by row, and products with them sum over D as well.
    """
    if any(part in HEADS or part.startswith("task_") for part in path):
        return None
    if path[-1] in ("token", "position"):
        return ndim - 1
    stacked = "encoder" in path or "decoder" in path
    if path[-1] in ("kernel", "lm_head"):
        return int(stacked)
    return ndim - 2 if path[-1] in ("up", "down") else None


def pack(params: Params) -> Params:
    """With each `Quantized` as a dict of two arrays, as it is written to disk."""
    return _map(params, lambda _, x: {"int8": x.values, "scale": x.scale} if isinstance(x, Quantized) else x)


def unpack(params: Params) -> Params:
    """What `pack` was given."""
    if not isinstance(params, dict):
        return params
    if params.keys() == {"int8", "scale"}:
        return Quantized(params["int8"], params["scale"])
    return {name: unpack(value) for name, value in params.items()}


def dequantize_params(params: Params) -> Params:
    """With ŵ in float32 in place of each `Quantized`."""
    return _map(params, lambda _, x: x.astype(np.float32) if isinstance(x, Quantized) else x)


def _map(params: Params, function: Callable[[tuple[str, ...], Params], Params], path: tuple[str, ...] = ()) -> Params:
    if not isinstance(params, dict):
        return function(path, params)
    return {name: _map(value, function, (*path, name)) for name, value in params.items()}
