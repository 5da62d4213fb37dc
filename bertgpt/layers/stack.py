"""Transformer blocks and the stack of them: H^l = Block(H^{l−1})."""

from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float, Int

from bertgpt.layers.attention import KeyValue, MultiHeadAttention
from bertgpt.layers.linear import Dropout, Init, LayerNorm, Linear, round_kernels, truncated_normal
from bertgpt.layers.mlp import ACTIVATIONS, Activation, FeedForward
from bertgpt.sharding import constrain


class Adapter(nn.Module):
    """x + W₂ GELU(W₁ x + b₁) + b₂ through a bottleneck, nearly the identity at first (Houlsby et al. 2019 §2.1)."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init = truncated_normal(1e-3)  # as in their released code
        inner = Linear((self.width,), ("embed", "norm"), init, name="down")(x)
        return x + Linear((x.shape[-1],), ("norm", "embed"), init, name="up")(ACTIVATIONS["gelu"](inner))


class Block(nn.Module):
    """Self-attention and feed-forward, each with residual, dropout and layer norm: BERT's encoder, GPT's decoder.

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
    """width of an adapter on what each sublayer gives; None: there is none"""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 S T"] | None = None,
        cache: KeyValue | None = None,
        index: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B S D"], KeyValue | None]:
        """Returns the new states and, if a cache came in, the cache with x's keys and values written at `index`."""
        head_dim = x.shape[-1] // self.num_heads
        attention = MultiHeadAttention(
            self.num_heads,
            head_dim,
            self.kernel_init,
            self.attention_dropout,
            out_init=self.residual_init,
            name="attention",
        )
        feed_forward = FeedForward(self.d_ff, self.activation, self.kernel_init, self.residual_init, name="mlp")
        norms = [LayerNorm(self.norm_eps, name=f"{sublayer}_norm") for sublayer in ("attention", "mlp")]
        drop = Dropout(self.dropout)

        def adapt(y: Float[Array, "B S D"], sublayer: str) -> Float[Array, "B S D"]:
            y = drop(y)
            return y if self.adapter_dim is None else Adapter(self.adapter_dim, name=f"{sublayer}_adapter")(y)

        def attend(y: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
            nonlocal cache
            if cache is not None:
                cache = cache.write(attention.key_value(y), index)
            return attention(y, mask, memory=cache)

        for name, norm, sublayer in zip(("attention", "mlp"), norms, (attend, feed_forward), strict=True):
            if self.norm_position == "pre":
                x = x + adapt(sublayer(norm(x)), name)
            else:
                x = norm(x + adapt(sublayer(x), name))
            x = constrain(x, ("batch", "seq", None))
        self.sow("intermediates", "hidden", x)
        return x, cache  # (carry, per-layer output), as nn.scan wants it


def stack(
    block: type[nn.Module], num_layers: int, scan: bool, remat: bool = False, shared: bool = False
) -> type[nn.Module]:
    """The block applied `num_layers` times, with one parameter layout: every leaf has a leading layer axis.

    `scan=False` unrolls the same loop at compile time: faster steps, longer compilation, equal numbers.
    `remat` recomputes each block's inner values in the backward pass instead of keeping them: a third more arithmetic,
    memory of one block. `shared` applies one block's parameters, which then have no layer axis, every time (ALBERT).
    """
    return nn.scan(
        nn.remat(block, prevent_cse=not scan) if remat else block,
        variable_axes={"intermediates": 0, "router": 0} if shared else {"params": 0, "intermediates": 0, "router": 0},
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True},
        in_axes=nn.broadcast,
        length=num_layers,
        unroll=1 if scan else num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def layer_params(params: dict, layer: int) -> dict:
    """Parameters of one layer of a stack, or of layers kept apart."""
    return params[str(layer)] if str(layer) in params else jax.tree.map(lambda leaf: leaf[layer], params)


def run_stack(layers: nn.Module, block: nn.Module, x: Float[Array, "B S D"], *args: Any) -> Float[Array, "B S D"]:
    """x through all layers: by the module that `stack` made or, if its parameters are apart, by `block`, no dropout."""
    params = layers.variables["params"] if layers.has_variable("params", "0") else {}
    if not params:
        return layers(x, *args)[0]
    for layer in range(len(params)):
        x, _ = block.apply({"params": layer_params(params, layer)}, x, *args)
    return x


def split_layers(params: dict, paths: tuple[str, ...]) -> dict:
    """Takes the stacks at these paths apart, {"0": …, "1": …}, for use without training.

    A stack is cut anew by every program that unrolls it, and the compiler copies what it cuts: of GPT-2's 500 MB, which
    a step of decoding reads once anyway, it made 1.5 GB.
    """

    def split(tree: dict, path: list[str]) -> dict:
        if path:
            return tree | {path[0]: split(tree[path[0]], path[1:])}
        number = len(jax.tree.leaves(tree)[0])
        return {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(number)}

    for path in paths:
        params = split(params, path.split("/"))
    return params


def for_inference(params: dict, stacks: tuple[str, ...], dtype: str) -> dict:
    """Parameters as use without training wants them: layers apart, and kernels rounded for computing in bfloat16."""
    params = split_layers(params, stacks)
    return round_kernels(params) if dtype == "bfloat16" else params
