"""Optimisers as configs: each makes an optax transformation and its learning-rate schedule."""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from bertgpt.adaptation.freezing import distances
from bertgpt.ranges import (
    Count,
    Epsilon,
    Fraction,
    LearningRate,
    Natural,
    NonNegative,
    Positive,
    Range,
    Rate,
    check_fields,
)
from bertgpt.training.factored import adafactor
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); the defaults are BERT's (Devlin et al. 2019 A.2)."""

    lr: LearningRate = 1e-4
    """peak learning rate"""
    warmup_steps: Natural = 0
    """steps of linear warm-up of the learning rate from 0"""
    decay: Literal["linear", "cosine", "constant", "rsqrt"] = "linear"
    """schedule after warm-up; linear and cosine end at end_fraction of the peak"""
    end_fraction: Fraction = 0.0
    """final learning rate as a fraction of the peak"""
    decay_steps: Count | None = None
    """step at which linear and cosine decay end; None: the last step"""
    b1: Rate = 0.9
    """decay of the mean of gradients"""
    b2: Rate = 0.999
    """decay of the mean of squared gradients"""
    eps: Epsilon = 1e-6
    """added to the root of the second moment"""
    bias_correction: bool = False
    """divide the moments by 1 − bᵗ as Adam does; BERT's released optimiser does not"""
    weight_decay: NonNegative = 0.01
    """decoupled decay of matrices; biases and layer norms are exempt"""
    clip_norm: Positive | None = 1.0
    """clip gradients to this global norm; None: no clipping"""
    layer_decay: Annotated[float, Range(0.0, 1.0, above=True)] = 1.0
    """layer-wise rates: lr · layer_decay^d at distance d from the head (ULMFiT, Howard & Ruder 2018; ELECTRA)"""
    unfreeze_every: Natural = 0
    """gradual unfreezing (ULMFiT): train the head and the top layer first, one more layer after every so many steps,
    and the embeddings last; 0: all layers from the start"""

    def __post_init__(self):
        check_fields(self)
        if self.unfreeze_every and not self.bias_correction:
            raise UserError(
                "AdamW: unfreeze_every needs bias_correction=True, because a layer's moments start when it is unfrozen"
            )

    def make(self, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optax transformation for a run of `steps` steps, and its schedule (step → learning rate)."""
        check_warmup("AdamW", self.warmup_steps, steps)
        schedule = warmup_schedule(self.lr, self.warmup_steps, self.decay_steps or steps, self.decay, self.end_fraction)
        adam = optax.scale_by_adam if self.bias_correction else scale_by_adam_uncorrected
        update = (
            optax.identity() if self.clip_norm is None else clip_by_global_norm(self.clip_norm),
            adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=decays),
        )
        if self.unfreeze_every:
            unfreeze = unfreeze_gradually(self.unfreeze_every)
            restarted = restart_adam(self.unfreeze_every, self.b1, self.b2, self.eps)
            update = unfreeze, update[0], restarted, update[2], unfreeze
        if self.layer_decay != 1.0:
            update += (scale_by_layer(self.layer_decay),)
        return optax.chain(*update, optax.scale_by_learning_rate(schedule)), schedule


@dataclasses.dataclass(frozen=True)
class Lamb:
    """LAMB (You et al. 2020): Adam whose update of each matrix is scaled to the matrix's norm. ALBERT used it.

    The stacked layers of a model are one array and share one trust ratio; ALBERT has a single shared layer.
    """

    lr: LearningRate = 1.76e-3
    """peak learning rate; the default is ALBERT's at batch 4096"""
    warmup_steps: Natural = 0
    """steps of linear warm-up of the learning rate from 0"""
    decay: Literal["linear", "cosine", "constant", "rsqrt"] = "linear"
    """schedule after warm-up"""
    b1: Rate = 0.9
    """decay of the mean of gradients"""
    b2: Rate = 0.999
    """decay of the mean of squared gradients"""
    eps: Epsilon = 1e-6
    """added to the root of the second moment"""
    weight_decay: NonNegative = 0.01
    """decoupled decay of matrices; biases and layer norms are exempt from it and from the trust ratio"""
    clip_norm: Positive | None = 1.0
    """clip gradients to this global norm; None: no clipping"""

    def __post_init__(self):
        check_fields(self)

    def make(self, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optax transformation for a run of `steps` steps, and its schedule (step → learning rate)."""
        check_warmup("Lamb", self.warmup_steps, steps)
        schedule = warmup_schedule(self.lr, self.warmup_steps, steps, self.decay, 0.0)
        return optax.chain(
            optax.identity() if self.clip_norm is None else clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=decays),
            optax.masked(optax.scale_by_trust_ratio(), decays),
            optax.scale_by_learning_rate(schedule),
        ), schedule


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern 2018) as in T5: row and column statistics, updates relative to a matrix's scale.

    Each layer counts as parameters of its own, and a projection to attention heads as one matrix, as in T5.
    """

    lr: LearningRate = 1.0
    """factor on the schedule; with warmup_steps=10_000 and rsqrt the rate is lr · min(10⁻², 1/√t), T5's"""
    warmup_steps: Count = 10_000
    """steps at the highest rate, lr / √warmup_steps, before it decays as lr / √t"""
    decay_rate: Annotated[float, Range(0.0, 1.0, above=True)] = 0.8
    """the decay of the second moment at step t is 1 − t^−decay_rate"""
    clip_rms: Positive = 1.0
    """clip a matrix's update to this root mean square"""

    def __post_init__(self):
        check_fields(self)

    def make(self, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optax transformation and its schedule (step → learning rate)."""
        del steps

        def schedule(count: Int[Array, ""] | int) -> Array:
            return self.lr / jnp.sqrt(jnp.maximum(jnp.asarray(count, jnp.float32) + 1.0, self.warmup_steps))

        return adafactor(schedule, self.decay_rate, self.clip_rms), schedule


def check_warmup(name: str, warmup_steps: int, steps: int) -> None:
    """Raises UserError if warm-up is longer than the run."""
    if warmup_steps > steps:
        raise UserError(f"{name}: warmup_steps={warmup_steps} exceeds steps={steps}")


def decays(params: optax.Params) -> optax.Params:
    """True for matrices and embeddings, False for biases and norm scales (by name: stacked biases have two axes)."""

    def decay(path: tuple, leaf: object) -> bool:
        # At initialisation a leaf is boxed with its axis names, which adds an attribute to its path.
        name = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]
        return name not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decay, params)


def warmup_schedule(lr: float, warmup_steps: int, steps: int, decay: str, end_fraction: float) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then the given decay until `steps`.

    Step t (from 0) uses lr · (t + 1) / warmup_steps during warm-up, so that no step has learning rate 0.
      linear:   from the peak to end_fraction · lr, reached after the last step.
      cosine:   half a cosine period between the same two values.
      constant: the peak.
      rsqrt:    lr · √(warmup_steps / (t + 1)) (Vaswani et al. 2017 §5.3).
    """

    def schedule(count: Int[Array, ""] | int) -> Array:
        t = jnp.asarray(count, jnp.float32)
        left = jnp.clip((steps - t) / max(1, steps - warmup_steps), 0.0, 1.0)
        shape = {
            "linear": left,
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - left))),
            "constant": jnp.ones_like(t),
            "rsqrt": jnp.sqrt(max(1, warmup_steps) / jnp.maximum(t + 1.0, 1.0)),
        }[decay]
        if decay in ("linear", "cosine"):
            shape = end_fraction + (1.0 - end_fraction) * shape
        return lr * jnp.where(t < warmup_steps, (t + 1.0) / max(1, warmup_steps), shape)

    return schedule


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients g by min(1, largest / ‖g‖) (Pascanu et al. 2013, algorithm 1).

    The compiler computes a product with one factor inside the loops of the optimiser. optax's function of this name
    divides each gradient by the norm, which on CPUs is a pass of its own over all of them.
    """

    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(update)


class UncorrectedAdamState(NamedTuple):
    mu: optax.Updates
    nu: optax.Updates


def scale_by_adam_uncorrected(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, m / (√v + eps), as in google-research/bert's AdamWeightDecayOptimizer.

    optax has no such variant. Early updates are larger than Adam's by √(1 − b2ᵗ)⁻¹ · (1 − b1ᵗ); warm-up compensates.
    """

    def init(params: optax.Params) -> UncorrectedAdamState:
        return UncorrectedAdamState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: UncorrectedAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, UncorrectedAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, UncorrectedAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Scales updates by decay^d at distance d from the head: 0 for heads, 1 for the top layer, …, L + 1 for embeddings.

    As in ULMFiT (Howard & Ruder 2018 §3.2) and BEiT's code. ELECTRA's code skips d = 1: its top layer has decay².
    """

    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(lambda u, d: u * (decay**d).astype(u.dtype), updates, distances(updates))

    return optax.stateless(update)


def unfreezing_steps(every: int, params: optax.Params) -> optax.Params:
    """The step at which each layer is unfrozen: heads and the top layer at 0, the next layer at `every`, …"""
    return jax.tree.map(lambda d: np.asarray(every * np.maximum(d - 1, 0)), distances(params))


def unfreeze_gradually(every: int) -> optax.GradientTransformation:
    """Sets updates of layers that are still frozen to 0 (Howard & Ruder 2018 §3.3)."""

    def update(
        updates: optax.Updates, state: optax.ScaleByScheduleState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        del params
        steps = unfreezing_steps(every, updates)
        masked = jax.tree.map(lambda u, s: jnp.where(state.count >= s, u, 0), updates, steps)
        return masked, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)


def restart_adam(every: int, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose bias correction starts when a layer is unfrozen; until then the layer's gradients must be 0."""

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)

        def scaled(m: Array, v: Array, start: np.ndarray) -> Array:
            age = jnp.maximum(count - start, 1).astype(m.dtype)
            return m / (1 - b1**age) / (jnp.sqrt(v / (1 - b2**age)) + eps)

        return jax.tree.map(scaled, mu, nu, unfreezing_steps(every, updates)), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)
