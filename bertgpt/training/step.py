"""What one training step computes, as pure functions.

step t:  noise and dropout keys = f(seed, t)  →  objective.prepare  →  loss terms as (sum, weight) over microbatches
         →  one division by the global weights  →  gradients  →  optax  →  TrainState at t + 1

A step whose loss or gradient is not finite leaves parameters and optimiser state as they are.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from bertgpt.adaptation.freezing import merge, separate
from bertgpt.config import Experiment, Trainable
from bertgpt.sharding import target_platform
from bertgpt.training.state import DROPOUT, EVAL_NOISE, NOISE, TrainState, random_key
from bertgpt.training.throughput import count_matmul
from bertgpt.types import Apply, Batch, Loss, Objective, Params, Sum


class Health(NamedTuple):
    """Loss and gradient norm of a step, which show whether it is finite."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


StepResult = tuple[TrainState, dict[str, Sum], Health]
"""The next state, metrics, and health of a step."""


def divide(loss: Loss, weights: dict[str, Array]) -> Array:
    """Σ over terms of sum / weight."""
    return sum(term.sum / jnp.maximum(weights[name], 1e-9) for name, term in loss.terms.items())


def term_weights(loss: Loss) -> dict[str, Array]:
    """Name of each term → its weight, without gradient."""
    return {name: jax.lax.stop_gradient(term.weight) for name, term in loss.terms.items()}


def loss_and_grads(
    objective: Objective,
    apply: Apply,
    params: Params,
    batch: Batch,
    rng: Key[Array, ""] | None,
    microbatches: int,
    trainable: Trainable = "all",
) -> tuple[Array, dict[str, Sum], Params]:
    """Loss, metrics and gradients of a prepared global batch.

    With several microbatches, gradients of (sum / global weight) are added, so that the result does not depend on how
    many positions each microbatch predicts. A loss that compares examples is still that of the whole batch (`Joint`).

    Args:
      objective: its `loss` is minimised.
      apply: runs the model.
      params: all parameters.
      batch: result of `objective.prepare`.
      rng: key for dropout; None turns dropout off.
      microbatches: number of microbatches.
      trainable: which parameters get a gradient.

    Returns:
      (loss, metrics as sums and weights, gradients of the trained parameters).
    """
    trained, frozen = separate(params, trainable)
    if microbatches == 1:

        def contribution(trained: Params) -> tuple[Array, dict[str, Sum]]:
            loss = objective.loss(apply, merge(trained, frozen), batch, rng)
            return divide(loss, term_weights(loss)), loss.metrics

        (value, metrics), grads = jax.value_and_grad(contribution, has_aux=True)(trained)
        return value, metrics, grads
    keys = None if rng is None else jax.vmap(lambda index: jax.random.fold_in(rng, index))(jnp.arange(microbatches))
    parts = split(batch, microbatches), keys
    # Weights depend on the batch only; the compiler drops the forward pass of this call as dead code.
    if objective.joint is None:
        weights = term_weights(objective.loss(apply, params, batch, None))
        return sum_over_parts(objective.loss, apply, (trained, frozen), weights, parts)

    # The gradient of the features is that of the whole batch; each microbatch propagates its own share of it.
    joint = objective.joint
    features = jax.lax.map(lambda part: joint.features(apply, params, *part), parts)
    features = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), features)

    def compared(features: dict[str, Array]) -> tuple[Array, dict[str, Sum]]:
        loss = joint.loss(features, batch, rng)
        return divide(loss, term_weights(loss)), loss.metrics

    (value, metrics), slopes = jax.value_and_grad(compared, has_aux=True)(features)

    def rest(apply: Apply, params: Params, part: Batch, key: Key[Array, ""] | None) -> Loss:
        loss = joint.rest(apply, params, part, key)
        found = joint.features(apply, params, part, key)
        along = sum(jnp.sum(found[name] * part[SLOPE + name]) for name in found)
        # Only the gradient of this term counts: its value is 0.
        return Loss(loss.terms | {"features": Sum(along - jax.lax.stop_gradient(along), jnp.ones(()))}, loss.metrics)

    weights = term_weights(joint.rest(apply, params, batch, None)) | {"features": jnp.ones(())}
    parts = parts[0] | split({SLOPE + name: slope for name, slope in slopes.items()}, microbatches), keys
    others, metrics_of_rest, grads = sum_over_parts(rest, apply, (trained, frozen), weights, parts)
    return value + others, metrics | metrics_of_rest, grads


SLOPE = "slope of "  # the gradients of features, by name, beside the fields of a microbatch


def split(batch: Batch, parts: int) -> Batch:
    """Arrays [B, …] as [n, B / n, …].

    Example b goes to part b mod n, so that each device splits its own examples and none are communicated.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def sum_over_parts(
    loss: Callable[..., Loss], apply: Apply, params: tuple[Params, Params], weights: dict[str, Array], parts: tuple
) -> tuple[Array, dict[str, Sum], Params]:
    """The loss, metrics and gradients of parts of a batch, one after another, each divided by the weights of all.

    Args:
      loss: (apply, params, part, key) → Loss.
      apply: runs the model.
      params: (trained, frozen).
      weights: of the loss's terms over all parts.
      parts: (batch, keys), both with a leading axis of parts.
    """
    trained, frozen = params

    def contribution(trained: Params, part: Batch, key: Key[Array, ""] | None) -> tuple[Array, dict[str, Sum]]:
        value = loss(apply, merge(trained, frozen), part, key)
        return divide(value, weights), value.metrics

    grad = jax.value_and_grad(contribution, has_aux=True)

    def body(carry: Params, part: tuple[Batch, Key[Array, ""] | None]) -> tuple[Params, None]:
        (value, metrics), grads = grad(trained, *part)
        return jax.tree.map(jnp.add, carry, (value, metrics, grads)), None

    (value, metrics), grads = jax.eval_shape(grad, trained, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, metrics, grads))
    (value, metrics, grads), _ = jax.lax.scan(body, zeros, parts)
    return value, metrics, grads


def count_tokens(batch: Batch, fields: Sequence[str]) -> Array:
    """Number of nonzero entries of these fields: tokens that are not padding."""
    return sum((jnp.sum(batch[name] > 0) for name in fields), start=jnp.zeros((), jnp.int32))


def make_train_step(
    objective: Objective,
    apply: Apply,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    shardings: TrainState,
    *,
    seed: int,
    microbatches: int = 1,
    trainable: Trainable = "all",
    token_fields: Sequence[str] = ("segment_ids",),
) -> Callable[[TrainState, Batch], StepResult]:
    """The jitted training step (state, batch) → (state, metrics, health); it donates the old state's memory.

    Args:
      objective: what is minimised.
      apply: runs the model.
      tx: the optimiser.
      schedule: learning rate by step, for the log.
      shardings: of the state.
      seed: seed of noise and dropout.
      microbatches: number of microbatches.
      trainable: which parameters are trained.
      token_fields: fields of the batch whose nonzero entries are the tokens that are not padding.

    Returns:
      The step. Its metrics are (sum, weight) pairs, to be added over steps and divided once. Those of a step that is
      not finite weigh nothing, and it counts 1 in "nonfinite".
    """

    def train_step(state: TrainState, batch: Batch) -> StepResult:
        prepared = objective.prepare(random_key(seed, NOISE, state.step), batch)
        dropout_key = random_key(seed, DROPOUT, state.step)
        trained, frozen = separate(state.params, trainable)
        loss, metrics, grads = loss_and_grads(
            objective, apply, state.params, prepared, dropout_key, microbatches, trainable
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def if_finite(new: Params, old: Params) -> Params:
            return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)

        def update() -> tuple[Params, Params]:
            updates, opt = tx.update(grads, state.opt, trained)
            return optax.apply_updates(trained, updates), opt

        before = trained, state.opt
        if target_platform() == "cpu":
            # `if_finite` would copy the moments there: 222 ms for BERT-base, the branch 100.
            trained, opt = jax.lax.cond(finite, update, lambda: before)
        else:
            trained, opt = if_finite(update(), before)
        params = merge(trained, frozen)
        one = jnp.ones(())
        metrics = metrics | {"loss": Sum(loss, one), "grad_norm": Sum(norm, one)}
        metrics = if_finite(metrics, jax.tree.map(jnp.zeros_like, metrics)) | {
            "lr": Sum(schedule(state.step), one),
            # One more pass over 4 bytes a parameter, beside the optimiser's 28: only steps of tiny batches notice it.
            "param_norm": Sum(optax.tree.norm(params), one),
            "tokens": Sum(count_tokens(batch, token_fields), one),
            "nonfinite": Sum(1.0 - finite, one),
        }
        return TrainState(state.step + 1, params, opt), metrics, Health(loss, norm)

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None, None))


def make_eval_step(
    objective: Objective, apply: Apply, seed: int, outputs: bool = False
) -> Callable[[Params, Batch, int], tuple[Loss, dict[str, Array]]]:
    """The jitted evaluation step (params, batch, batch number) → (loss without dropout, outputs of `predict` or {}).

    Noise depends on the batch number only. The compiler merges the forward passes of loss and `predict` into one.
    """

    def eval_step(params: Params, batch: Batch, index: Int[Array, ""]) -> tuple[Loss, dict[str, Array]]:
        prepared = objective.prepare(random_key(seed, EVAL_NOISE, index), batch)
        loss = objective.loss(apply, params, prepared, None)
        return loss, objective.predict(apply, params, prepared) if outputs else {}

    return jax.jit(eval_step)


def step_flops(experiment: Experiment, objective: Objective, apply: Apply, params: Params, batch: Batch) -> int:
    """Matmul FLOPs of one step: those of one microbatch's loss and gradient, times the number of microbatches."""
    microbatch = {
        name: jax.ShapeDtypeStruct((x.shape[0] // experiment.microbatches, *x.shape[1:]), x.dtype)
        for name, x in batch.items()
    }

    def gradients(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple:
        prepared = objective.prepare(key, batch)
        return loss_and_grads(objective, apply, params, prepared, key, 1, experiment.trainable)

    key = jax.eval_shape(lambda: random_key(experiment.seed, NOISE, 0))
    return experiment.microbatches * count_matmul(gradients, params, microbatch, key)
