"""Layer norm and RMS norm, computed in float32 at least."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bertgpt.sharding import gather


def layer_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*batch D"]:
    """(x − mean) / √(var + eps) · scale + bias over the last axis (Ba et al. 2016), in float32 at least."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(y, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
    return ((y - mean) * jax.lax.rsqrt(var + eps) * scale + bias).astype(x.dtype)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (x.shape[-1],))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (x.shape[-1],))
        return layer_norm(x, gather(scale, ("norm",)), gather(bias, ("norm",)), self.eps)


def rms_norm(x: Float[Array, "*batch D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*batch D"]:
    """x / √(mean x² + eps) · scale over the last axis (Zhang & Sennrich 2019), in float32 at least."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its parameter."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (x.shape[-1],))
        return rms_norm(x, gather(scale, ("norm",)), self.eps)
