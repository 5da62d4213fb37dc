"""Adafactor on this package's parameters: as if each layer were a parameter of its own, and each kernel a matrix.

Stacks hold all layers in one array, and projections to attention heads are kernels [D, H, K]. Adafactor is defined for
one matrix (Shazeer & Stern 2018 algorithm 4), and T5's checkpoints were trained with one matrix per layer and kernel.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bertgpt.adaptation.freezing import STACKS, path_names, without_network

SMALLEST_SCALE = 1e-3  # parameters count as having at least this root mean square: ε₂ of Shazeer & Stern 2018 §8


def is_stacked(path: tuple) -> bool:
    """Whether the parameter at this path has a leading axis of layers."""
    return without_network(path_names(path))[0] in STACKS


def matrices(params: optax.Params) -> optax.Params:
    """Kernels [D, H, K] as matrices [D, H·K], and those of a stack, [L, D, H, K], as [L, D, H·K]."""

    def view(path: tuple, leaf: Array) -> Array:
        keep = 2 if is_stacked(path) else 1
        if path_names(path)[-1] != "kernel" or leaf.ndim <= keep:
            return leaf
        return leaf.reshape(*leaf.shape[:keep], math.prod(leaf.shape[keep:]))

    return jax.tree_util.tree_map_with_path(view, params)


def on_matrices(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation applied to `matrices` of parameters and gradients."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        found, state = tx.update(matrices(updates), state, None if params is None else matrices(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), found, updates), state

    return optax.GradientTransformation(lambda params: tx.init(matrices(params)), update)


def root_mean_square(path: tuple, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """√mean(x²), of each layer where `x` is a stack of layers; with axes of size 1, so that it broadcasts."""
    axes = tuple(range(1 if is_stacked(path) else 0, x.ndim))
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def clip_by_rms(most: float) -> optax.GradientTransformation:
    """Divides each parameter's update by max(1, RMS(update) / most) (Shazeer & Stern 2018 §6)."""

    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u / jnp.maximum(1.0, root_mean_square(path, u) / most), updates
        )

    return optax.stateless(update)


def scale_by_rms_of_parameters() -> optax.GradientTransformation:
    """Multiplies each parameter's update by max(ε₂, RMS(parameter)) (Shazeer & Stern 2018 §8)."""

    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(
            lambda path, u, p: u * jnp.maximum(SMALLEST_SCALE, root_mean_square(path, p)), updates, params
        )

    return optax.stateless(update)


def adafactor(schedule: optax.Schedule, decay_rate: float, clip_rms: float) -> optax.GradientTransformation:
    """`optax.adafactor` without momentum and weight decay, layer by layer and matrix by matrix.

    Args:
      schedule: step → learning rate, relative to a parameter's root mean square.
      decay_rate: the decay of the second moments at step t is 1 − t^−decay_rate.
      clip_rms: clip a matrix's update to this root mean square.
    """
    return on_matrices(
        optax.chain(
            optax.scale_by_factored_rms(decay_rate=decay_rate),
            clip_by_rms(clip_rms),
            scale_by_rms_of_parameters(),
            optax.scale_by_learning_rate(schedule),
        )
    )
