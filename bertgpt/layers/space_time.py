"""The Transformer block with divided space–time attention (Bertasius et al. 2021, TimeSformer)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bertgpt.layers.attention import MultiHeadAttention
from bertgpt.layers.dropout import Dropout
from bertgpt.layers.linear import Init, Linear
from bertgpt.layers.masks import Attention, Mask, make_mask
from bertgpt.layers.mlp import Activation, FeedForward
from bertgpt.layers.norm import LayerNorm
from bertgpt.sharding import constrain


class DividedBlock(nn.Module):
    """Attention over the frames of each patch, then over the patches of each frame, then feed-forward; all pre-norm.

    The class token takes part in the attention of every frame, and its outputs of all frames are averaged; it does not
    take part in the attention over time (§3.2 and the released code). F + P keys a patch instead of F·P.
    """

    num_heads: int
    head_dim: int
    d_ff: int
    frames: int
    activation: Activation
    norm_eps: float
    dropout: float
    attention_dropout: float
    attention: Attention
    kernel_init: Init

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B N D"], None]:
        """States of the class token and F·P patches, frame by frame."""
        batch, _, width = x.shape
        drop, frames = Dropout(self.dropout), self.frames

        def attend(y: Float[Array, "M S D"], name: str) -> Float[Array, "M S D"]:
            dropout = self.attention_dropout > 0 and self.has_rng("dropout")
            mask = make_mask(self.attention, (y.shape[1],) * 2, self.head_dim, y.dtype, Mask(), dropout=dropout)
            layer = MultiHeadAttention(
                self.num_heads, self.head_dim, self.kernel_init, self.attention_dropout, name=name
            )
            return drop(layer(y, mask))

        def gathered(y: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
            # A mesh that splits sequences cannot split places and frames apart.
            return constrain(y, ("batch", None, None))

        first, patches = x[:, :1], x[:, 1:]
        y = gathered(LayerNorm(self.norm_eps, name="time_norm")(patches))
        y = y.reshape(batch, frames, -1, width).swapaxes(1, 2).reshape(-1, frames, width)
        y = attend(y, "time_attention").reshape(batch, -1, frames, width).swapaxes(1, 2).reshape(patches.shape)
        y = gathered(y)
        out = Linear((width,), ("embed", "norm"), self.kernel_init, name="time_out")
        patches = constrain(patches + out(y), ("batch", "seq", None))

        y = gathered(LayerNorm(self.norm_eps, name="attention_norm")(jnp.concatenate([first, patches], axis=1)))
        by_frame = y[:, 1:].reshape(batch * frames, -1, width)
        y = attend(jnp.concatenate([jnp.repeat(y[:, :1], frames, axis=0), by_frame], axis=1), "attention")
        mean = jnp.mean(y[:, 0].reshape(batch, frames, width), axis=1, keepdims=True)
        x = jnp.concatenate([first + mean, patches + y[:, 1:].reshape(patches.shape)], axis=1)
        x = constrain(x, ("batch", "seq", None))

        y = LayerNorm(self.norm_eps, name="mlp_norm")(x)
        x = x + drop(FeedForward(self.d_ff, self.activation, self.kernel_init, name="mlp")(y))
        x = constrain(x, ("batch", "seq", None))
        self.sow("intermediates", "hidden", x)
        return x, None
