"""The state of training: what changes from step to step, how it is initialised, and the keys of its randomness."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from bertgpt.adaptation.freezing import separate
from bertgpt.adaptation.lora import Lora, init_lora
from bertgpt.config import Trainable
from bertgpt.sharding import state_shardings
from bertgpt.types import Batch, Inputs, Objective, Params

# Uses of randomness. Each is a stream of its own: key = f(seed, use, step), never split and carried.
INIT, NOISE, DROPOUT, EVAL_NOISE, LORA = range(5)


def stream(seed: int, use: int, step: Int[Array, ""] | int) -> Key[Array, ""]:
    """The random key of one use at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), step)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from step to step. Its leaves are arrays, or, in a state of shardings, the place of each."""

    step: Any
    params: Any
    opt: Any


def init_state(
    module: nn.Module,
    objective: Objective,
    tx: optax.GradientTransformation,
    batch: Batch,
    mesh: jax.sharding.Mesh,
    seed: int,
    trainable: Trainable = "all",
    lora: Lora | None = None,
) -> tuple[TrainState, TrainState]:
    """Fresh state, born sharded, and its shardings. Parameters exist for exactly what the objective's loss calls.

    The optimiser knows of those alone that are trained.
    """

    def run_loss(module: nn.Module, batch: Batch) -> None:
        def apply(
            params: Params,
            inputs: Inputs | None = None,
            *,
            method: str = "__call__",
            rng: None = None,
            auxiliary: str | None = None,
            task: str | None = None,
            **named: Any,
        ) -> Any:
            del params, rng
            result = module.run(inputs, method, task, named)  # raises if the model lacks the method
            return (result, {}) if auxiliary else result

        objective.loss(apply, None, objective.prepare(stream(seed, NOISE, 0), batch), None)

    def boxed() -> TrainState:
        params = nn.init(run_loss, module)({"params": stream(seed, INIT, 0)}, batch)["params"]
        if lora is not None:
            params |= {"lora": init_lora(lora, params, stream(seed, LORA, 0))}
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(separate(params, trainable)[0]))

    # Parameters carry their logical axes in boxes; the optimiser's moments, made from them, inherit the boxes.
    shardings = state_shardings(jax.eval_shape(boxed), mesh)
    return jax.jit(lambda: nn.unbox(boxed()), out_shardings=shardings)(), shardings
