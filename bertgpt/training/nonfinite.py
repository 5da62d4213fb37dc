"""Steps that are not finite: noticed as they happen, handled by the experiment's policy, never saved.

The training step computes loss and gradient norm anyway, and leaves the state as it is where one of them is not finite
(see `step`). The host reads the two numbers two steps later, when they have long arrived, so that no step waits.
"""

import dataclasses
from collections import deque
from collections.abc import Callable

import numpy as np

from bertgpt.config import NonFinite
from bertgpt.runs.checkpoint import Checkpoints, all_finite
from bertgpt.training.state import TrainState
from bertgpt.training.step import Health
from bertgpt.types import UserError

LAG = 2  # steps after which numbers are read: the device still has work queued
MOST_IN_A_ROW = 100  # skipped steps
MOST_FROM_ONE = 3  # returns to the same checkpoint


class Guard:
    """Watches the steps of a run and applies its policy."""

    def __init__(self, name: str, policy: NonFinite, checkpoints: Checkpoints, say: Callable[[str], None]):
        """`checkpoints`: what to return to. `say`: logs a line."""
        self.name, self.policy, self.checkpoints, self.say = name, policy, checkpoints, say
        self._pending: deque[tuple[int, Health]] = deque()
        self._in_a_row = 0
        self._returns: tuple[int | None, int] = None, 0  # step of the last checkpoint returned to, how often

    def watch(self, step: int, health: Health) -> None:
        """Takes note of a step."""
        for value in health:
            value.copy_to_host_async()
        self._pending.append((step, health))

    def checked(self, state: TrainState, step: int, wait: bool) -> TrainState:
        """The state to continue with: the given one, or that of a checkpoint.

        Args:
          state: after `step`.
          step: the last step.
          wait: check the last steps too, for which the device may still have to be waited for.

        Raises:
          UserError: a step was not finite, and the policy is to stop or cannot continue.
        """
        while len(self._pending) > (0 if wait else LAG):
            number, health = self._pending.popleft()
            loss, norm = (float(np.asarray(value)) for value in health)
            if np.isfinite(loss) and np.isfinite(norm):
                self._in_a_row = 0
                continue
            what = f"the loss is {loss}" if not np.isfinite(loss) else f"the norm of the gradient is {norm}"
            if self.policy == "roll_back":
                return self._roll_back(state, step, f"{what} at step {number}")
            if self.policy == "stop":
                raise UserError(
                    f"{self.name}: {what} at step {number}; lower optim.lr, clip with optim.clip_norm, or continue with"
                    " --nonfinite skip or roll_back"
                )
            self._in_a_row += 1
            if self._in_a_row == MOST_IN_A_ROW:
                raise UserError(f"{self.name}: {what} at step {number}, as for {MOST_IN_A_ROW} steps; lower optim.lr")
            self.say(f"{self.name}: {what} at step {number}: its update is skipped")
        return state

    def sound(self, state: TrainState, step: int) -> TrainState:
        """Like `checked`, for a state that is to be saved: every step and every number of it is checked.

        Raises:
          UserError: as `checked`, or a number of the state itself is not finite.
        """
        state = self.checked(state, step, wait=True)
        if all_finite((state.params, state.opt)):
            return state
        what = f"parameters or optimiser state are no longer finite after step {step}"
        if self.policy == "roll_back":
            return self._roll_back(state, step, what)
        raise UserError(
            f"{self.name}: {what}, and are not saved; lower optim.lr, clip with optim.clip_norm, or continue with"
            " --nonfinite roll_back"
        )

    def _roll_back(self, state: TrainState, step: int, what: str) -> TrainState:
        """The newest checkpoint as if it were the state after `step`: the batches in between are left out."""
        self._pending.clear()
        self.checkpoints.wait()
        saved = self.checkpoints.latest()
        self._returns = saved, self._returns[1] + 1 if self._returns[0] == saved else 1
        if saved is None:
            raise UserError(f"{self.name}: {what}, and there is no checkpoint yet to return to; lower optim.lr")
        if self._returns[1] > MOST_FROM_ONE:
            raise UserError(f"{self.name}: {what}, again after {MOST_FROM_ONE} returns to step {saved}; lower optim.lr")
        self.say(f"{self.name}: {what}: continuing with the state of step {saved}, without the batches since")
        return dataclasses.replace(self.checkpoints.restore(state), step=state.step)
