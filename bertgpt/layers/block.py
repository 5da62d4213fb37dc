"""The Transformer block: H^l = Block(H^{l−1})."""

import functools
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers.attention import KeyValue, MultiHeadAttention
from bertgpt.layers.dropout import Dropout
from bertgpt.layers.linear import Init, Linear, truncated_normal
from bertgpt.layers.masks import Mask
from bertgpt.layers.mlp import ACTIVATIONS, Activation, FeedForward
from bertgpt.layers.norm import LayerNorm
from bertgpt.sharding import constrain


class Adapter(nn.Module):
    """x + W₂ GELU(W₁ x + b₁) + b₂ through a bottleneck, initially close to the identity (Houlsby et al. 2019 §2.1)."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init = truncated_normal(1e-3)  # as in their released code
        inner = Linear((self.width,), ("embed", "norm"), init, name="down")(x)
        return x + Linear((x.shape[-1],), ("norm", "embed"), init, name="up")(ACTIVATIONS["gelu"](inner))


class Block(nn.Module):
    """Self-attention and feed-forward, each with residual, dropout and layer norm: the block of BERT and GPT.

    post: x ← LN(x + f(x)) (Vaswani et al. 2017, BERT).  pre: x ← x + f(LN(x)) (Xiong et al. 2020, GPT-2).
    """

    num_heads: int
    d_ff: int
    activation: Activation
    norm_position: Literal["post", "pre"]
    norm_eps: float
    dropout: float
    attention_dropout: float
    kernel_init: Init
    residual_init: Init | None = None
    """initialiser of the two projections that write to the residual stream (None: `kernel_init`)"""
    adapter_dim: int | None = None
    """width of an adapter on the output of each sublayer; None: no adapters"""
    head_dim: int | None = None
    """width of a head; None: that of x divided by the number of heads"""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Mask | Bool[Array, "#B 1 S T"] | None = None,
        cache: KeyValue | None = None,
        index: Int[Array, ""] | Int[Array, " B"] | int = 0,
        memory: Float[Array, "B P D"] | KeyValue | None = None,
    ) -> tuple[Float[Array, "B S D"], KeyValue | None]:
        """Returns the new states and, if a cache is given, the cache with the keys and values of x at `index`.

        With `memory`, the output of an encoder or its keys and values, attention to all of it is a sublayer of its own
        between self-attention and feed-forward.
        """

        def make_attention(name: str) -> MultiHeadAttention:
            width = self.head_dim or x.shape[-1] // self.num_heads
            init, rate = self.kernel_init, self.attention_dropout
            return MultiHeadAttention(self.num_heads, width, init, rate, out_init=self.residual_init, name=name)

        attention, drop = make_attention("attention"), Dropout(self.dropout)
        feed_forward = FeedForward(self.d_ff, self.activation, self.kernel_init, self.residual_init, name="mlp")

        def adapt(y: Float[Array, "B S D"], sublayer: str) -> Float[Array, "B S D"]:
            y = drop(y)
            return y if self.adapter_dim is None else Adapter(self.adapter_dim, name=f"{sublayer}_adapter")(y)

        def attend(y: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
            nonlocal cache
            if cache is not None:
                cache = cache.write(attention.key_value(y), index)
            return attention(y, mask, memory=cache)

        sublayers = {"attention": attend, "mlp": feed_forward}
        if memory is not None:
            cross = make_attention("cross_attention")
            memory = memory if isinstance(memory, KeyValue) else cross.key_value(memory)
            look = functools.partial(cross, memory=memory)
            sublayers = {"attention": attend, "cross_attention": look, "mlp": feed_forward}
        for name, sublayer in sublayers.items():
            norm = LayerNorm(self.norm_eps, name=f"{name}_norm")
            if self.norm_position == "pre":
                x = x + adapt(sublayer(norm(x)), name)
            else:
                x = norm(x + adapt(sublayer(x), name))
            x = constrain(x, ("batch", "seq", None))
        self.sow("intermediates", "hidden", x)
        return x, cache  # (carry, per-layer output), as nn.scan expects
