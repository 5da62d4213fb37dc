"""Mixture of experts with top-1 routing (Fedus et al. 2022 §2.1).

Each row of the batch is a group: an expert takes at most C of its tokens, first come first served; a token over that
capacity gets nothing from the layer and passes by the residual connection. Padding takes no capacity.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from bertgpt.layers.dropout import Dropout
from bertgpt.layers.linear import Init
from bertgpt.layers.mlp import ACTIVATIONS, Activation
from bertgpt.ranges import Count, Layers, Positive, Rate, Width, check_fields
from bertgpt.sharding import constrain, gather


class Routing(NamedTuple):
    """Where each token goes."""

    dispatch: Bool[Array, "B S E C"]
    """token s is the c-th that expert e takes"""
    probability: Float[Array, "B S"]
    """router probability of the chosen expert, the gate on its output"""
    load_balance: Float[Array, " B"]
    """E · Σ_e f_e P_e of each group, 1 when balanced (formula 4 without α)"""
    z: Float[Array, " B"]
    """mean of logsumexp(logits)² over a group's tokens (Zoph et al. 2022, formula 5)"""
    load: Float[Array, "B E"]
    """f_e, the fraction of a group's tokens that choose expert e"""
    dropped: Float[Array, " B"]
    """fraction of a group's tokens over capacity"""


def route(
    logits: Float[Array, "B S E"],
    real: Bool[Array, "B S"],
    capacity: int,
    limit: Int[Array, " B"] | None = None,
) -> Routing:
    """Top-1 routing in float32.

    Args:
      logits: the router's scores.
      real: tokens to route; the others are padding.
      capacity: places that an expert has for a group, C.
      limit: how many of them it may use, where groups of fewer tokens get fewer; None: all.
    """
    num_experts = logits.shape[-1]
    probabilities = jax.nn.softmax(logits, axis=-1)
    choice = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), num_experts, dtype=jnp.int32) * real[..., None]
    place = jnp.cumsum(choice, axis=1) * choice  # 1, 2, … in the chosen expert's queue, 0 elsewhere
    if limit is not None:
        place = jnp.where(place <= limit[:, None, None], place, 0)
    dispatch = jax.nn.one_hot(place - 1, capacity, dtype=bool)  # beyond the capacity: nowhere
    count = jnp.maximum(jnp.sum(real, axis=1), 1).astype(logits.dtype)
    load = jnp.sum(choice, axis=1) / count[:, None]
    mean_probability = jnp.sum(probabilities * real[..., None], axis=1) / count[:, None]
    z = jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * real, axis=1) / count
    return Routing(
        dispatch,
        jnp.max(probabilities, axis=-1),
        num_experts * jnp.sum(jax.lax.stop_gradient(load) * mean_probability, axis=-1),
        z,
        load,
        1.0 - jnp.sum(dispatch, axis=(1, 2, 3)) / count,
    )


def jitter(key: Key[Array, ""], x: Float[Array, "..."], amount: float) -> Float[Array, "..."]:
    """x times noise uniform in [1 − amount, 1 + amount]."""
    return x * jax.random.uniform(key, x.shape, x.dtype, 1.0 - amount, 1.0 + amount)


def capacity_of(num_tokens: int, num_experts: int, factor: float) -> int:
    """Tokens an expert takes of a group: ⌈tokens / experts × factor⌉ (formula 3), at least 1."""
    return max(1, math.ceil(num_tokens / num_experts * factor))


@dataclasses.dataclass(frozen=True)
class Experts:
    """The sparse layers of a Switch Transformer."""

    num_experts: Width = 128
    """feed-forward networks in a sparse layer"""
    every: Layers = 2
    """one layer in this many is sparse: the second of each such group, or all if 1"""
    train_capacity: Positive = 1.25
    """tokens an expert takes of a row in training, times the number it would get if all got the same"""
    eval_capacity: Positive = 2.0
    """the same outside of training"""
    fixed_capacity: Count | None = None
    """tokens an expert takes of a row, whatever its length (transformers' expert_capacity); None: the factors"""
    jitter: Rate = 1e-2
    """training noise on the router's input, uniform in [1 − jitter, 1 + jitter]"""
    dropout: Rate = 0.1
    """dropout inside the experts: as everywhere in pretraining, 0.4 in fine-tuning"""

    def __post_init__(self):
        check_fields(self)


class SwitchFeedForward(nn.Module):
    """A router and several feed-forward networks, each token using one: p_e(x) · FFN_e(x).

    Sows into the collection “router” the fields of `Routing` that objectives and logs want.
    """

    config: Experts
    d_ff: int
    activation: Activation
    kernel_init: Init

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], real: Bool[Array, "B S"]) -> Float[Array, "B S D"]:
        c, d_model, experts = self.config, x.shape[-1], self.config.num_experts
        training = self.has_rng("dropout")
        factor = c.train_capacity if training else c.eval_capacity
        capacity, limit = c.fixed_capacity, None
        if capacity is None:
            # Padding buys no places: a row must not depend on how far it is padded.
            capacity = capacity_of(x.shape[1], experts, factor)
            share = jnp.sum(real, axis=1) * (factor / experts)
            limit = jnp.maximum(jnp.ceil(share - 1e-4).astype(jnp.int32), 1)
        # Selective precision (§2.4): the router, and nothing else, computes in float32.
        routed = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if training and c.jitter > 0.0:
            routed = jitter(self.make_rng("dropout"), routed, c.jitter)
        router = self.param(
            "router", nn.with_logical_partitioning(self.kernel_init, ("embed", None)), (d_model, experts)
        )
        routing = route(routed @ gather(router, ("embed", None)), real, min(capacity, x.shape[1]), limit)
        for name in ("load_balance", "z", "load", "dropped"):
            self.sow("router", name, routing._asdict()[name])

        def expert_init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return jax.vmap(lambda k: self.kernel_init(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

        def weights(name: str, axes: tuple[str, str], shape: tuple[int, int]) -> Float[Array, "E ..."]:
            init = nn.with_logical_partitioning(expert_init, ("expert", *axes))
            return gather(self.param(name, init, (experts, *shape)), ("expert", *axes)).astype(x.dtype)

        dispatch = routing.dispatch.astype(x.dtype)
        # Each device dispatches the tokens of its own rows; then an all-to-all along the expert axis exchanges rows for
        # experts, and another brings the results back.
        taken = constrain(jnp.einsum("bsec,bsd->ebcd", dispatch, x), (None, "batch", None, None))
        taken = constrain(taken, ("expert", "expert_batch", None, None))
        inner = jnp.einsum("ebcd,edf->ebcf", taken, weights("up", ("embed", "mlp"), (d_model, self.d_ff)))
        inner = checkpoint_name(inner, "mlp_in")
        inner = Dropout(c.dropout)(ACTIVATIONS[self.activation](inner))
        out = jnp.einsum("ebcf,efd->ebcd", inner, weights("down", ("mlp", "embed"), (self.d_ff, d_model)))
        out = constrain(constrain(out, ("expert", "expert_batch", None, None)), (None, "batch", None, None))
        combine = dispatch * routing.probability.astype(x.dtype)[..., None, None]
        return constrain(jnp.einsum("bsec,ebcd->bsd", combine, out), ("batch", "seq", None))


def expert_of(routing: Routing) -> Int[Array, "B S"]:
    """The expert that takes each token, −1 for none: for reports and tests."""
    taken = jnp.any(routing.dispatch, axis=-1)
    return jnp.where(jnp.any(taken, axis=-1), jnp.argmax(taken, axis=-1), -1)
