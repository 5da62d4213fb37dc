"""Embeddings: tokens, learned positions, token types."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bertgpt.layers.linear import Dropout, Init, LayerNorm
from bertgpt.sharding import constrain


def lookup(table: Float[Array, "rows D"], axis: str, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """table[ids]. A table whose width is sharded is gathered first, as every weight is before use."""
    return constrain(table, (axis, None))[ids]


def table(module: nn.Module, name: str, axis: str, shape: tuple[int, int], init: Init) -> Float[Array, "rows D"]:
    """A new embedding table as a parameter of `module`."""
    return module.param(name, nn.with_logical_partitioning(init, (axis, "embed")), shape)


class Embeddings(nn.Module):
    """E[token] + P[position] + T[type], then layer norm and dropout where there are any (BERT: both)."""

    vocab_size: int
    width: int
    num_positions: int
    num_types: int
    norm_eps: float | None
    """epsilon of the layer norm; None: no layer norm"""
    dropout: float
    kernel_init: Init
    position_init: Init | None = None
    """initialiser of the position table (None: `kernel_init`)"""

    def setup(self):
        self.token = table(self, "token", "vocab", (self.vocab_size, self.width), self.kernel_init)
        rows = (self.num_positions, self.width)
        self.position = table(self, "position", "positions", rows, self.position_init or self.kernel_init)
        if self.num_types:
            self.type = table(self, "type", "types", (self.num_types, self.width), self.kernel_init)
        if self.norm_eps is not None:
            self.norm = LayerNorm(self.norm_eps)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, ids: Int[Array, "B S"], positions: Int[Array, "#B S"], type_ids: Int[Array, "B S"] | None = None
    ) -> Float[Array, "B S E"]:
        x = lookup(self.token, "vocab", ids) + lookup(self.position, "positions", positions)
        if self.num_types:
            x = x + lookup(self.type, "types", jnp.zeros((1, 1), int) if type_ids is None else type_ids)
        return self.drop(x if self.norm_eps is None else self.norm(x))
