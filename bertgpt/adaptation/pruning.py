"""Structured pruning: heads, feed-forward units and whole layers are removed; what is left is a smaller dense model.

Which heads and units matter is measured by the gradient of a gate ξ = 1 on the output of each,

    I_h = E_x abs(∂L(x) / ∂ξ_h)     (Michel et al. 2019, "Are Sixteen Heads Really Better than One?", §4.1, eq. 2),

with L(x) the loss of one sequence. A gate scales the rows of W^O (of W₂ for a unit) that read this head, so that it
needs no change of the model. Every layer keeps the same number of heads and units, each layer its own most important
ones, so that the stack remains one array for each parameter.

Layers: the top ones are dropped (Sajjad et al. 2023, "On the Effect of Dropping Layers of Pre-trained Transformer
Models", §3) or every k-th is kept (Sanh et al. 2019, §3; Fan et al. 2020, §3.3).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bertgpt.models.config import TransformerConfig
from bertgpt.types import Apply, Batch, ModelConfig, Objective, Params, UserError

Drop = Literal["top", "alternate"]


class Importance(NamedTuple):
    """How much the loss depends on each head and on each unit of the feed-forward networks."""

    heads: Float[np.ndarray, "L H"]
    """mean |∂L/∂ξ| of each head"""
    units: Float[np.ndarray, "L F"]
    """the same of each feed-forward unit"""


def stack_path(config: ModelConfig) -> str:
    """The name of the one stack of a model whose layers can be pruned.

    Raises:
      UserError: its layers share parameters or differ from each other, or it has several stacks.
    """
    alternating = isinstance(config, TransformerConfig) and vars(config).get("local_window") is not None
    if not isinstance(config, TransformerConfig) or len(config.stacks) != 1 or alternating:
        raise UserError(
            f"prune: {type(config).__name__.removesuffix('Config')}: only BERT and GPT models whose layers are all"
            " alike and share no parameters can be pruned"
        )
    return config.stacks[0]


def gated(params: Params, stack: str, gates: Importance) -> Params:
    """The parameters of a model in which the output of each head and unit is multiplied by its gate."""
    layers = params[stack]
    attention, mlp = layers["attention"], layers["mlp"]
    kernel = attention["out"]["kernel"]
    by_head = kernel.reshape(*gates.heads.shape, -1, kernel.shape[-1]) * gates.heads[..., None, None]
    attention = attention | {"out": attention["out"] | {"kernel": by_head.reshape(kernel.shape)}}
    mlp = mlp | {"down": mlp["down"] | {"kernel": mlp["down"]["kernel"] * gates.units[..., None]}}
    return params | {stack: layers | {"attention": attention, "mlp": mlp}}


def measure_importance(
    objective: Objective, apply: Apply, params: Params, config: ModelConfig, batches: Iterable[Batch]
) -> Importance:
    """The importance of heads and units, averaged over the sequences of these batches.

    Args:
      objective: its loss, without dropout, is what heads matter for.
      apply: runs the model.
      params: its parameters, layers stacked.
      config: of the model.
      batches: of training data.

    Raises:
      UserError: the model cannot be pruned, or the loss compares sequences with each other.
    """
    stack = stack_path(config)
    if objective.joint is not None:
        raise UserError("prune: the loss compares the examples of a batch, so that a single one has no importance")
    ones = Importance(jnp.ones((config.num_layers, config.num_heads)), jnp.ones((config.num_layers, config.d_ff)))

    @jax.jit
    def total(params: Params, batch: Batch, index: Int[Array, ""]) -> Importance:
        prepared = objective.prepare(jax.random.key(index), batch)

        def of_example(example: Batch) -> Importance:
            def loss_of(gates: Importance) -> Array:
                one = jax.tree.map(lambda x: x[None], example)
                loss = objective.loss(apply, gated(params, stack, gates), one, None)
                return sum(term.sum / jnp.maximum(term.weight, 1e-9) for term in loss.terms.values())

            return jax.tree.map(jnp.abs, jax.grad(loss_of)(ones))

        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.map(of_example, prepared))

    found, count = jax.tree.map(lambda x: np.zeros(x.shape), ones), 0
    for index, batch in enumerate(batches):
        part = jax.device_get(total(params, batch, index))
        found = jax.tree.map(np.add, found, part)
        count += len(next(iter(batch.values())))
    return jax.tree.map(lambda x: x / max(count, 1), found)


def most_important(scores: Float[np.ndarray, "L N"], count: int) -> Int[np.ndarray, "L n"]:
    """For each layer the indices of its `count` highest scores, in ascending order; of equal scores the first."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)


def choose_layers(num_layers: int, count: int, drop: Drop) -> tuple[int, ...]:
    """The `count` layers, of `num_layers`, that are left.

    Args:
      num_layers: of the model.
      count: how many to keep.
      drop: "top": the lowest are kept. "alternate": evenly spaced ones are, from the lowest: of 6 the layers 0, 2 and 4
        for 3, as DistilBERT starts.

    Raises:
      UserError: there are not so many.
    """
    if not 1 <= count <= num_layers:
        raise UserError(f"prune: num_layers={count} must be between 1 and the model's {num_layers}")
    return tuple(range(count)) if drop == "top" else tuple(i * num_layers // count for i in range(count))


def take_layers(config: ModelConfig, params: Params, layers: Sequence[int]) -> tuple[ModelConfig, Params]:
    """The model that consists of these layers of another one, in this order.

    Raises:
      UserError: the model has no such layers, or they are not all alike.
    """
    stack = stack_path(config)
    if not layers or not all(0 <= layer < config.num_layers for layer in layers):
        raise UserError(f"layers={tuple(layers)} must be layers of the model, 0 to {config.num_layers - 1}")
    taken = jax.tree.map(lambda leaf: leaf[np.asarray(layers)], params[stack])
    return dataclasses.replace(config, num_layers=len(layers)), params | {stack: taken}


def prune_params(
    config: ModelConfig,
    params: Params,
    *,
    layers: Sequence[int] | None = None,
    num_heads: int | None = None,
    d_ff: int | None = None,
    importance: Importance | None = None,
) -> tuple[ModelConfig, Params]:
    """A smaller model: some layers, and of each the most important heads and feed-forward units.

    Args:
      config: of the model; the result differs in `num_layers`, `num_heads`, `head_dim` and `d_ff`.
      params: its parameters, layers stacked.
      layers: indices of the layers to keep; None: all.
      num_heads: heads to keep in every layer; None: all. They keep their width.
      d_ff: feed-forward units to keep in every layer; None: all.
      importance: of the whole model; needed for heads and units.

    Returns:
      (config, params) of the pruned model.

    Raises:
      UserError: the model cannot be pruned, or a number is out of range.
    """
    stack = stack_path(config)
    for name, count in (("num_heads", num_heads), ("d_ff", d_ff)):
        if count is not None and not 1 <= count <= vars(config)[name]:
            raise UserError(f"prune: {name}={count} must be between 1 and the model's {vars(config)[name]}")
        if count is not None and importance is None:
            raise UserError(f"prune: {name}={count} needs the importance of heads and units")
    if layers is not None:
        config, params = take_layers(config, params, layers)
        if importance is not None:
            importance = Importance(*(scores[np.asarray(layers)] for scores in importance))
    blocks = params[stack]
    attention, mlp = blocks["attention"], blocks["mlp"]
    if num_heads is not None:
        attention = select_heads(attention, most_important(importance.heads, num_heads), config.head_width)
        config = dataclasses.replace(config, num_heads=num_heads, head_dim=config.head_width)
    if d_ff is not None:
        mlp = select_units(mlp, most_important(importance.units, d_ff))
        config = dataclasses.replace(config, d_ff=d_ff)
    return without_needless_width(config), params | {stack: blocks | {"attention": attention, "mlp": mlp}}


def without_needless_width(config: TransformerConfig) -> TransformerConfig:
    """With head_dim=None where it is d_model / num_heads."""
    plain = config.head_dim is not None and config.num_heads * config.head_dim == config.d_model
    return dataclasses.replace(config, head_dim=None) if plain else config


def select_heads(attention: Params, kept: Int[np.ndarray, "L n"], head_dim: int) -> Params:
    """Stacked attention layers with these heads only."""
    projections = {
        name: {
            "kernel": np.take_along_axis(layer["kernel"], kept[:, None, :, None], axis=2),
            "bias": np.take_along_axis(layer["bias"], kept[:, :, None], axis=1),
        }
        for name, layer in attention.items()
        if name != "out"
    }
    rows = (kept[..., None] * head_dim + np.arange(head_dim)).reshape(len(kept), -1)
    kernel = np.take_along_axis(attention["out"]["kernel"], rows[..., None], axis=1)
    return attention | projections | {"out": attention["out"] | {"kernel": kernel}}


def select_units(mlp: Params, kept: Int[np.ndarray, "L n"]) -> Params:
    """Stacked feed-forward networks with these units only."""
    up = {
        "kernel": np.take_along_axis(mlp["up"]["kernel"], kept[:, None, :], axis=2),
        "bias": np.take_along_axis(mlp["up"]["bias"], kept, axis=1),
    }
    down = mlp["down"] | {"kernel": np.take_along_axis(mlp["down"]["kernel"], kept[..., None], axis=1)}
    return mlp | {"up": up, "down": down}


def with_zero_heads(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The same function as a model whose heads have the width d_model / num_heads, as other libraries require.

    Heads that were removed come back as heads of zeros; other models are returned unchanged.

    Raises:
      UserError: d_model is not a multiple of the width of a head, or smaller than all heads together.
    """
    if not isinstance(config, TransformerConfig) or config.head_dim is None:
        return config, params
    heads, rest = divmod(config.d_model, config.head_dim)
    if rest or heads < config.num_heads:
        raise UserError(
            f"export: head_dim={config.head_dim}: {config.num_heads} heads of this width have no counterpart there,"
            f" where d_model={config.d_model} is split among the heads"
        )
    stack = stack_path(config)
    attention, missing = params[stack]["attention"], heads - config.num_heads

    def padded(array: np.ndarray, axis: int, count: int) -> np.ndarray:
        return np.pad(array, [(0, count if axis == i else 0) for i in range(array.ndim)])

    wide = {
        name: {"kernel": padded(layer["kernel"], 2, missing), "bias": padded(layer["bias"], 1, missing)}
        for name, layer in attention.items()
        if name != "out"
    }
    wide["out"] = attention["out"] | {"kernel": padded(attention["out"]["kernel"], 1, missing * config.head_dim)}
    config = dataclasses.replace(config, num_heads=heads, head_dim=None)
    return config, params | {stack: params[stack] | {"attention": attention | wide}}
