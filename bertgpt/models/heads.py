"""Layers that turn hidden states into predictions. Each is created only if an objective calls it."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bertgpt.layers.linear import Dropout, LayerNorm, Linear
from bertgpt.layers.mlp import ACTIVATIONS, Activation
from bertgpt.sharding import constrain


class MlmHead(nn.Module):
    """Scores of every word at given positions, with output vectors tied to the input embedding E.

    plain: eᵥᵀh, no transform and no bias, the form in which the loss is derived (docs/mlm_loss.md).
    transform: eᵥᵀ LN(act(W h + b)) + cᵥ, the form of BERT's released code.
    """

    form: Literal["plain", "transform"]
    activation: Activation
    norm_eps: float
    stddev: float

    @nn.compact
    def __call__(self, h: Float[Array, "*batch D"], embedding: Float[Array, "V D"]) -> Float[Array, "*batch V"]:
        if self.form == "transform":
            h = Linear((h.shape[-1],), ("embed", "norm"), self.stddev, name="dense")(h)
            h = LayerNorm(self.norm_eps, name="norm")(ACTIVATIONS[self.activation](h))
        flat = h.reshape(-1, h.shape[-1]) @ embedding.astype(h.dtype).T
        logits = flat.reshape(*h.shape[:-1], embedding.shape[0])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.form == "transform":
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            logits = logits + self.param("bias", zeros, (embedding.shape[0],))
        return constrain(logits, ("batch",) + (None,) * (logits.ndim - 2) + ("vocab",))


class ClassificationHead(nn.Module):
    """Dropout and one fully connected layer on a vector per sequence (Devlin et al. 2019 §4.1)."""

    dropout: float
    stddev: float

    @nn.compact
    def __call__(self, pooled: Float[Array, "B D"], num_labels: int) -> Float[Array, "B C"]:
        logits = Linear((num_labels,), ("embed", "labels"), self.stddev, name="dense")(Dropout(self.dropout)(pooled))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
