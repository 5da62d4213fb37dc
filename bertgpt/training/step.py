"""What one update computes, as pure functions.

step t:  noise and dropout keys = f(seed, t)  →  objective.prepare  →  loss terms as (sum, weight) over microbatches
         →  one division by the global weights  →  gradients  →  optax  →  TrainState at t + 1
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from bertgpt.adaptation.freezing import merge, separate
from bertgpt.config import Trainable
from bertgpt.training.state import DROPOUT, EVAL_NOISE, NOISE, TrainState, stream
from bertgpt.types import Apply, Batch, Loss, Objective, Sum


def divide(loss: Loss, weights: dict[str, Array]) -> Array:
    """Σ over terms of sum / weight."""
    return sum(term.sum / jnp.maximum(weights[name], 1e-9) for name, term in loss.terms.items())


def term_weights(loss: Loss) -> dict[str, Array]:
    return {name: jax.lax.stop_gradient(term.weight) for name, term in loss.terms.items()}


def loss_and_grads(
    objective: Objective,
    apply: Apply,
    params: Any,
    batch: Batch,
    rng: Key[Array, ""] | None,
    microbatches: int,
    trainable: Trainable = "all",
) -> tuple[Array, dict[str, Sum], Any]:
    """Loss of a prepared global batch, its metrics as (sum, weight), and the gradient of the loss in what is trained.

    With several microbatches, gradients of (sum / global weight) add up: no mean of means, whatever the counts.
    """

    trained, frozen = separate(params, trainable)

    def contribution(
        trained: Any, piece: Batch, key: Key[Array, ""] | None, weights: dict[str, Array] | None
    ) -> tuple[Array, Any]:
        loss = objective.loss(apply, merge(trained, frozen), piece, key)
        return divide(loss, term_weights(loss) if weights is None else weights), loss.metrics

    grad = jax.value_and_grad(contribution, has_aux=True)
    if microbatches == 1:
        (value, metrics), grads = grad(trained, batch, rng, None)
        return value, metrics, grads

    # Weights depend on the batch alone; the forward pass behind them here is dead code, which the compiler drops.
    weights = term_weights(objective.loss(apply, params, batch, None))
    # Row b goes to microbatch b mod n, so that each device splits its own rows and none of them travels.
    pieces = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(carry: Any, item: tuple[Int[Array, ""], Batch]) -> tuple[Any, None]:
        index, piece = item
        (value, metrics), grads = grad(trained, piece, None if rng is None else jax.random.fold_in(rng, index), weights)
        return jax.tree.map(jnp.add, carry, (value, metrics, grads)), None

    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(lambda: (lambda v, g: (*v, g))(*grad(trained, first, rng, weights)))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (value, metrics, grads), _ = jax.lax.scan(body, zeros, (jnp.arange(microbatches), pieces))
    return value, metrics, grads


def count_tokens(batch: Batch) -> Array:
    """Tokens that are not padding; of several tasks, all of theirs."""
    return sum(jnp.sum(x > 0) for name, x in batch.items() if name.rpartition("/")[2] == "segment_ids")


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
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Sum]]]:
    """The compiled update (state, batch) → (state, metrics); the old state's memory is reused.

    Metrics are (sum, weight) pairs: add them over steps and divide once. “tokens” counts tokens that are not padding.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Sum]]:
        prepared = objective.prepare(stream(seed, NOISE, state.step), batch)
        dropout_key = stream(seed, DROPOUT, state.step)
        trained, frozen = separate(state.params, trainable)
        loss, metrics, grads = loss_and_grads(
            objective, apply, state.params, prepared, dropout_key, microbatches, trainable
        )
        updates, opt = tx.update(grads, state.opt, trained)
        params = merge(optax.apply_updates(trained, updates), frozen)
        one = jnp.ones(())
        metrics = metrics | {
            "loss": Sum(loss, one),
            "lr": Sum(schedule(state.step), one),
            "grad_norm": Sum(optax.tree.norm(grads), one),
            "tokens": Sum(count_tokens(batch), one),
        }
        return TrainState(state.step + 1, params, opt), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(
    objective: Objective, apply: Apply, seed: int, answers: bool = False
) -> Callable[[Any, Batch, int], tuple[Loss, dict[str, Array]]]:
    """Compiled (params, batch, batch number) → (Loss without dropout, what `predict` answers if `answers`).

    Noise depends on the batch number alone. Both come from one forward pass, which the compiler finds to be the same.
    """

    def eval_step(params: Any, batch: Batch, index: Int[Array, ""]) -> tuple[Loss, dict[str, Array]]:
        prepared = objective.prepare(stream(seed, EVAL_NOISE, index), batch)
        loss = objective.loss(apply, params, prepared, None)
        return loss, objective.predict(apply, params, prepared) if answers else {}

    return jax.jit(eval_step)
