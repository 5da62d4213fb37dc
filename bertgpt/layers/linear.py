"""Affine maps and initialisers."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Key

from bertgpt.layers.quantized import Quantized, quantized_matmul
from bertgpt.sharding import gather, splits, target_platform

Init = Callable[..., Array]
ENOUGH_ROWS = 256  # with fewer, rounding the weights takes longer than the product saves
FEW_ROWS = 8  # with fewer, rounded weights are read no faster


def truncated_normal(stddev: float) -> Init:
    """Truncated normal at two standard deviations, as BERT initialises (no correction of the variance)."""

    def init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return stddev * jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype)

    return init


def normal(stddev: float) -> Init:
    """Normal with this standard deviation, as GPT-2 initialises."""
    return lambda key, shape, dtype=jnp.float32: stddev * jax.random.normal(key, tuple(shape), dtype)


def fan_in_normal(scale: float = 1.0, truncated: bool = False) -> Init:
    """Normal with variance scale / fan_in, the size of the first axis: T5; truncated with scale 0.1: Switch."""
    distribution = truncated_normal if truncated else normal
    return lambda key, shape, dtype=jnp.float32: distribution((scale / shape[0]) ** 0.5)(key, shape, dtype)


BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16"))
"""instructions that multiply bfloat16 about twice as fast as float32; without them it is converted, and slower"""


@functools.cache
def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for products in bfloat16, as Linux reports it; False where it is not known."""
    try:
        flags = next(line for line in cpuinfo.read_text("utf-8").splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not BFLOAT16_FLAGS.isdisjoint(flags.split())


def wants_bfloat16() -> bool:
    """Whether float32 products should be computed in bfloat16 (`jax.default_matmul_precision`) by our own code.

    Compilers for other devices than CPUs do so themselves. CPUs without instructions for it compute in float32.
    """
    requested = jax.config.jax_default_matmul_precision == "bfloat16"
    return requested and target_platform() == "cpu" and cpu_has_bfloat16()


def matmul(x: Float[Array, "*N D"], w: Float[Array, "D F"] | Quantized) -> Float[Array, "*N F"]:
    """x w, in the type of `x`; computed in bfloat16 where that is requested and faster."""
    if isinstance(w, Quantized):
        return quantized_matmul(x.reshape(-1, x.shape[-1]), w, target_platform()).reshape(*x.shape[:-1], -1)
    if x.ndim == 2 and x.dtype == jnp.float32 and wants_bfloat16():
        if len(x) >= (FEW_ROWS if w.dtype == jnp.bfloat16 else ENOUGH_ROWS):
            return bfloat16_matmul(x, w)
    return x @ w.astype(x.dtype)


def tied_matmul(x: Float[Array, "*N D"], table: Float[Array, "V D"] | Quantized) -> Float[Array, "*N V"]:
    """x tableᵀ, as `matmul`: logits from the embedding table.

    Contracts the last axes instead of multiplying by a transpose, which for one row compiles to a transposed copy of
    the table (decoding GPT-2: 20 → 5 ms a token without it).
    """
    rows = flatten_rows(x)
    if isinstance(table, Quantized):
        return matmul(x, Quantized(table.values.T, table.scale.T))
    if rows.ndim == 2 and x.dtype == jnp.float32 and wants_bfloat16() and len(rows) >= ENOUGH_ROWS:
        product = bfloat16_matmul(rows, table.T)
    else:
        product = jax.lax.dot_general(rows, table.astype(x.dtype), (((rows.ndim - 1,), (1,)), ((), ())))
    return product.reshape(*x.shape[:-1], table.shape[0])


def flatten_rows(x: Float[Array, "*batch D"]) -> Float[Array, "... D"]:
    """x with all leading axes flattened into one, unless the mesh splits more than the first of them.

    Otherwise a weight gradient contracts several axes and misses the CPU's fast matrix kernel (feed-forward, forward +
    backward: 288 → 177 ms measured). Axes that are split on their own cannot be merged without gathering them.
    """
    return x if splits("sequence") else x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def bfloat16_matmul(x: Float[Array, "N D"], w: Float[Array, "D F"]) -> Float[Array, "N F"]:
    """x w with factors rounded to bfloat16, in the forward and backward pass, by the CPU's fast kernel.

    Measured for 1024 × 768 × 3072 on two cores: 374, 394 and 383 GFLOP/s for the three products, against 210, 205 and
    214 in float32. Results are rounded to bfloat16 too, as by products that miss the kernel.
    """
    return _bfloat16_forward(x, w)[0]


def _product(a: Float[Array, "N D"], b: Float[Array, "D F"]) -> Float[Array, "N F"]:
    # The kernel needs row-major factors: a transposed one is copied, which costs little.
    a, b = (with_layout_constraint(factor, Layout(major_to_minor=(0, 1))) for factor in (a, b))
    return (a @ b).astype(jnp.float32)


def _bfloat16_forward(x: Float[Array, "N D"], w: Float[Array, "D F"]) -> tuple[Float[Array, "N F"], tuple]:
    half = x.astype(jnp.bfloat16)
    return _product(half, w.astype(jnp.bfloat16)), (half, w)  # w itself, which is stored anyway


def _bfloat16_backward(saved: tuple, gradient: Float[Array, "N F"]) -> tuple[Float[Array, "N D"], Float[Array, "D F"]]:
    (x, w), g = saved, gradient.astype(jnp.bfloat16)
    return _product(g, w.astype(jnp.bfloat16).T), _product(x.T, g)


bfloat16_matmul.defvjp(_bfloat16_forward, _bfloat16_backward)


def linear(
    x: Float[Array, "*batch D"], kernel: Float[Array, "D ..."] | Quantized, bias: Float[Array, " *out"] | None = None
) -> Float[Array, "..."]:
    """x W + b over the last axis, in the type of `x`; without b if there is none."""
    out = kernel.shape[1:]
    matrix = kernel.matrix() if isinstance(kernel, Quantized) else kernel.reshape(kernel.shape[0], -1)
    flat = matmul(flatten_rows(x), matrix)
    if bias is not None:
        flat = flat + bias.reshape(-1).astype(x.dtype)
    return flat.reshape(*x.shape[:-1], *out)


def round_kernels(params: dict) -> dict:
    """Kernels rounded to bfloat16 once, for inference; other parameters are unchanged."""

    def rounded(path: tuple, leaf: Any) -> Any:
        return leaf.astype(jnp.bfloat16) if path[-1] == jax.tree_util.DictKey("kernel") else leaf

    return jax.tree_util.tree_map_with_path(rounded, params)


class Linear(nn.Module):
    """`linear` with its parameters. `features` may have several axes, e.g. (heads, head_dim)."""

    features: tuple[int, ...]
    axes: tuple[str, ...]
    """logical names of the kernel's axes: input, then features"""
    kernel_init: Init = truncated_normal(0.02)
    use_bias: bool = True

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "..."]:
        return linear(x, *self.weights(x.shape[-1]))

    @nn.compact
    def weights(self, width: int) -> tuple[Float[Array, "D ..."] | Quantized, Float[Array, " *out"] | None]:
        """Kernel and bias for inputs of this width."""
        shape = (width, *self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, self.axes), shape)
        kernel = gather(kernel, self.axes)
        if not self.use_bias:
            return kernel, None
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:]), self.features)
        return kernel, gather(bias, self.axes[1:])


def apply_together(x: Float[Array, "*batch D"], layers: Sequence[Linear]) -> list[Float[Array, "..."]]:
    """The outputs of several layers with equal features for one input.

    Where a mesh splits features over "tensor", the layers are one product: the gradient of the input is then reduced
    over the devices once, and not once for each layer.
    """
    if len(layers) == 1 or not splits("tensor"):
        return [layer(x) for layer in layers]
    kernels, biases = zip(*(layer.weights(x.shape[-1]) for layer in layers), strict=True)
    joint = jnp.stack([kernel.reshape(x.shape[-1], -1) for kernel in kernels], axis=1).astype(x.dtype)
    outputs = jnp.einsum("...d,dnf->...nf", flatten_rows(x), joint)
    found = []
    for index, (layer, bias) in enumerate(zip(layers, biases, strict=True)):
        out = outputs[..., index, :]
        out = out if bias is None else out + bias.reshape(-1).astype(x.dtype)
        found.append(out.reshape(*x.shape[:-1], *layer.features))
    return found
