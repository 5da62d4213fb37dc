"""The position-wise feed-forward network (Vaswani et al. 2017 §3.3)."""

import functools
from typing import Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from bertgpt.layers.linear import Linear

Activation = Literal["relu", "gelu", "gelu_tanh"]
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # x Φ(x), the exact form
    "gelu_tanh": jax.nn.gelu,  # the form of BERT's released code
}


class FeedForward(nn.Module):
    """FFN(x) = act(x W₁ + b₁) W₂ + b₂, with act = ReLU in the original Transformer and GELU in BERT."""

    d_ff: int
    activation: Activation
    stddev: float

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        inner = Linear((self.d_ff,), ("embed", "mlp"), self.stddev, name="up")(x)
        return Linear((x.shape[-1],), ("mlp", "embed"), self.stddev, name="down")(ACTIVATIONS[self.activation](inner))
