"""Embeddings of tokens, learned positions and token types, and the prefix that may stand before the tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bertgpt.layers.dropout import Dropout
from bertgpt.layers.linear import Init
from bertgpt.layers.norm import LayerNorm
from bertgpt.layers.quantized import Quantized
from bertgpt.sharding import constrain_gathered, gather
from bertgpt.types import Inputs, UserError


def lookup(table: Float[Array, "rows D"] | Quantized, axis: str, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """table[ids]. A table whose width is sharded is gathered first, as every weight is before use.

    The gradients of its rows are added up in the gathered form too: otherwise the compiler would exchange the gradients
    of the tokens, of which there are more than rows.
    """
    names = (axis, "embed")
    return constrain_gathered(gather(table, names), names)[ids]


def table(module: nn.Module, name: str, axis: str, shape: tuple[int, int], init: Init) -> Array | Quantized:
    """A new embedding table as a parameter of `module`."""
    return module.param(name, nn.with_logical_partitioning(init, (axis, "embed")), shape)


def embed_tokens(token_table: Float[Array, "V D"] | Quantized, inputs: Inputs) -> Float[Array, "B N D"]:
    """The prefix, if there is one, and the embedded tokens.

    Raises:
      UserError: neither `input_ids` nor `embeds` is given, or both are.
    """
    if (inputs.input_ids is None) == (inputs.embeds is None):
        raise UserError("Inputs: give input_ids or embeds, and not both")
    x = lookup(token_table, "vocab", inputs.input_ids) if inputs.embeds is None else inputs.embeds
    return x if inputs.prefix is None else jnp.concatenate([inputs.prefix.astype(x.dtype), x], axis=1)


def include_prefix(inputs: Inputs) -> Inputs:
    """The inputs with all fields but the tokens extended to cover the prefix, if there is one.

    The prefix takes positions 0 … P − 1, which moves the tokens to P and on; its segment is 1 and its token type 0.
    Where `bidirectional` is given it is True for the prefix.

    Raises:
      UserError: the sequences are packed: a prefix belongs to one document. Inside a compiled function the segment ids
        are unknown and this cannot be checked.
    """
    if inputs.prefix is None:
        return inputs
    count, segments, positions = inputs.prefix.shape[1], inputs.segment_ids, inputs.positions
    if segments is not None and not isinstance(segments, jax.core.Tracer) and np.asarray(segments).max() > 1:
        raise UserError("Inputs: prefix is not supported for packed sequences (segment_ids above 1)")

    def extend(x: Array | None, value: int | bool) -> Array | None:
        return None if x is None else jnp.pad(x, ((0, 0), (count, 0)), constant_values=value)

    if positions is not None:
        own = jnp.broadcast_to(jnp.arange(count, dtype=positions.dtype), (positions.shape[0], count))
        positions = jnp.concatenate([own, positions + count], axis=1)
    return inputs._replace(
        segment_ids=extend(segments, 1),
        positions=positions,
        type_ids=extend(inputs.type_ids, 0),
        bidirectional=extend(inputs.bidirectional, True),
    )


def place_prefix(
    prefix: Float[Array, "B P D"], tokens: Float[Array, "B S D"], starts: Int[Array, " B"]
) -> Float[Array, "B N D"]:
    """Vectors of prompts that are padded on the left, with a prefix directly before each one's first token.

    Row b is padding up to column starts[b], then the prefix, then the tokens, so that `starts` stays what it was.
    """
    count, columns = prefix.shape[1], jnp.arange(prefix.shape[1] + tokens.shape[1])[None]
    distance = columns - starts[:, None]
    index = jnp.where(distance < 0, count + columns, jnp.where(distance < count, distance, columns))
    return jnp.take_along_axis(jnp.concatenate([prefix.astype(tokens.dtype), tokens], axis=1), index[..., None], axis=1)


def prefix_length(inputs: Inputs) -> int:
    """Number of vectors before the tokens."""
    return 0 if inputs.prefix is None else inputs.prefix.shape[1]


def drop_prefix(x: Float[Array, "B N D"], inputs: Inputs) -> Float[Array, "B S D"]:
    """The states of the tokens alone."""
    return x if inputs.prefix is None else x[:, prefix_length(inputs) :]


def total_length(inputs: Inputs) -> int:
    """Number of vectors that the blocks see: prefix and tokens."""
    tokens = inputs.input_ids if inputs.embeds is None else inputs.embeds
    return prefix_length(inputs) + (0 if tokens is None else tokens.shape[1])


def positions_or_default(inputs: Inputs) -> Int[Array, "#B N"]:
    """The positions given, else 0, 1, …; for inputs that `include_prefix` has extended."""
    return jnp.arange(total_length(inputs))[None] if inputs.positions is None else inputs.positions


class Embeddings(nn.Module):
    """E[token] + P[position] + T[type], then layer norm and dropout where configured (BERT: both)."""

    vocab_size: int
    width: int
    num_positions: int
    """rows of the position table"""
    num_types: int
    """rows of the token type table; 0: there is none"""
    norm_eps: float | None
    """epsilon of the layer norm; None: no layer norm"""
    dropout: float
    kernel_init: Init
    position_init: Init | None = None
    """initialiser of the position table (None: `kernel_init`)"""
    first_position: int = 0
    """row of the position table that position 0 uses"""

    def setup(self):
        self.token = table(self, "token", "vocab", (self.vocab_size, self.width), self.kernel_init)
        rows = (self.num_positions, self.width)
        self.position = table(self, "position", "positions", rows, self.position_init or self.kernel_init)
        if self.num_types:
            self.type = table(self, "type", "types", (self.num_types, self.width), self.kernel_init)
        if self.norm_eps is not None:
            self.norm = LayerNorm(self.norm_eps)
        self.drop = Dropout(self.dropout)

    def __call__(self, inputs: Inputs) -> Float[Array, "B N E"]:
        """Embeds inputs that `include_prefix` has extended."""
        positions = positions_or_default(inputs) + self.first_position
        x = embed_tokens(self.token, inputs) + lookup(self.position, "positions", positions)
        if self.num_types:
            types = jnp.zeros((1, 1), int) if inputs.type_ids is None else inputs.type_ids
            x = x + lookup(self.type, "types", types)
        return self.drop(x if self.norm_eps is None else self.norm(x))
