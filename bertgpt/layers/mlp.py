"""The position-wise feed-forward network (Vaswani et al. 2017 §3.3)."""

import functools
from typing import Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from bertgpt.layers.dropout import Dropout
from bertgpt.layers.linear import Init, Linear, apply_together

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "tanh"]
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # x Φ(x), the exact form
    "gelu_tanh": jax.nn.gelu,  # the form of BERT's released code
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016 §2
    "tanh": jax.nn.tanh,
}


class FeedForward(nn.Module):
    """FFN(x) = act(x W₁ + b₁) W₂ + b₂, with act = ReLU in the original Transformer and GELU in BERT.

    Gated: (act(x W_g) ⊙ x W₁) W₂, each with its bias (Shazeer 2020).
    """

    d_ff: int
    activation: Activation
    kernel_init: Init
    down_init: Init | None = None
    """initialiser of W₂ (None: `kernel_init`)"""
    use_bias: bool = True
    gated: bool = False
    dropout: float = 0.0
    """dropout on the inner activations, as T5 has it"""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        layers = [
            Linear((self.d_ff,), ("embed", "mlp"), self.kernel_init, self.use_bias, name=name)
            for name in (("gate", "up") if self.gated else ("up",))
        ]
        first, *rest = (checkpoint_name(inner, "mlp_in") for inner in apply_together(x, layers))
        inner = ACTIVATIONS[self.activation](first)
        if rest:
            inner = inner * rest[0]
        down = Linear((x.shape[-1],), ("mlp", "embed"), self.down_init or self.kernel_init, self.use_bias, name="down")
        return down(Dropout(self.dropout)(inner))
