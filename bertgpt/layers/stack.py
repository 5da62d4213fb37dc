"""Transformer blocks and the stack of them: H^l = Block(H^{l−1})."""

from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bertgpt.layers.attention import MultiHeadAttention
from bertgpt.layers.linear import Dropout, LayerNorm
from bertgpt.layers.mlp import Activation, FeedForward
from bertgpt.sharding import constrain


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each with residual, dropout and layer norm.

    post: x ← LN(x + f(x)) (Vaswani et al. 2017, BERT).  pre: x ← x + f(LN(x)) (Xiong et al. 2020).
    """

    num_heads: int
    d_ff: int
    activation: Activation
    norm_position: Literal["post", "pre"]
    norm_eps: float
    dropout: float
    attention_dropout: float
    stddev: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B 1 S S"] | None
    ) -> tuple[Float[Array, "B S D"], None]:
        attend = MultiHeadAttention(self.num_heads, self.stddev, self.attention_dropout, name="attention")
        feed_forward = FeedForward(self.d_ff, self.activation, self.stddev, name="mlp")
        norms = [LayerNorm(self.norm_eps, name=f"{sublayer}_norm") for sublayer in ("attention", "mlp")]
        drop = Dropout(self.dropout)
        for norm, sublayer in zip(norms, (lambda y: attend(y, mask), feed_forward), strict=True):
            if self.norm_position == "pre":
                x = x + drop(sublayer(norm(x)))
            else:
                x = norm(x + drop(sublayer(x)))
            x = constrain(x, ("batch", "seq", None))
        return x, None  # (carry, per-layer output), as nn.scan wants it


def stack(block: type[nn.Module], num_layers: int, scan: bool) -> type[nn.Module]:
    """The block applied `num_layers` times, with one parameter layout: every leaf has a leading layer axis.

    `scan=False` unrolls the same loop at compile time: faster steps, longer compilation, equal numbers.
    """
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        unroll=1 if scan else num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
