"""Steps whose loss is not finite, or far above those before it: noticed as they happen, handled by a policy.

The training step computes loss and gradient norm anyway, and leaves the state as it is where one of them is not finite
(see `step`). The host reads the two numbers two steps later, when they have long arrived, so that no step waits.

Rolling back (Chowdhery et al. 2022, PaLM, §5.1) continues after step n, at which the loss was bad, with the state of a
checkpoint s < n: parameters and optimiser state are those of s, step number, learning rate and data go on behind n, so
that the batches s + 1 … n are left out. Steps that were taken before the host noticed are forgotten. Where spikes are
watched, s and n depend on the experiment and its data only, and all that decides about them is saved with each
checkpoint: a run that is interrupted returns to the same states.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from bertgpt.config import NonFinite, Spikes
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.saving import all_finite
from bertgpt.training.state import TrainState
from bertgpt.training.step import Health
from bertgpt.types import JsonObject, UserError

OFF = Spikes()
LAG = 2  # steps after which numbers are read: the device still has work queued
MOST_IN_A_ROW = 100  # skipped steps
MOST_FROM_ONE = 3  # returns to the same checkpoint
SMALLEST_STD = 0.01  # of the losses before, as a share of their mean: losses that hardly vary are no alarm


class Back(NamedTuple):
    """What to continue with after rolling back."""

    state: TrainState
    step: int
    skipped: int
    """batches that are left out"""


class Guard:
    """Watches the steps of a run and applies its policies."""

    def __init__(
        self,
        name: str,
        policy: NonFinite,
        checkpoints: Checkpoints,
        say: Callable[[str], None],
        spikes: Spikes = OFF,
        saved: JsonObject | None = None,
    ):
        """Starts to watch.

        Args:
          name: of the run.
          policy: for steps that are not finite.
          checkpoints: what to return to.
          say: logs a line.
          spikes: which losses are too high.
          saved: what `saving` returned for the checkpoint that the run continues from.
        """
        self.name, self.policy, self.checkpoints, self.say, self.spikes = name, policy, checkpoints, say, spikes
        saved = saved or {}
        self.skipped: list[tuple[int, int]] = [(first, last) for first, last in saved.get("skipped", ())]
        """(s, n): the batches of steps s + 1 … n were left out"""
        self.anchors: list[int] = list(saved.get("anchors", ()))
        """steps of checkpoints to return to after a spike, in ascending order"""
        # Losses of the last steps. Those before a checkpoint to return to are needed again behind it.
        losses = ((step, loss) for step, loss in saved.get("losses", ()))
        self._losses: deque[tuple[int, float]] = deque(losses, spikes.window + 2 * spikes.rewind)
        self._pending: deque[tuple[int, Health]] = deque()
        self._in_a_row = 0

    def watch(self, step: int, health: Health) -> None:
        """Takes note of a step."""
        for value in health:
            value.copy_to_host_async()
        self._pending.append((step, health))

    def checked(self, state: TrainState, step: int, wait: bool) -> Back | None:
        """What to continue with in place of a state, None if the state is good.

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
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
                if self.policy == "roll_back":
                    return self._roll_back(state, number, f"{what} at step {number}")
                self._skip(number, what)
                continue
            self._in_a_row = 0
            if (limit := self._limit()) is not None and loss > limit:
                what = f"the loss is {loss:.4g} at step {number}, above {limit:.4g}"
                if self._target(number) is not None:
                    return self._roll_back(state, number, what)
                self.say(f"{self.name}: {what}, and there is no checkpoint yet to return to: continuing")
            if self.spikes.threshold:
                self._losses.append((number, loss))
        return None

    def sound(self, state: TrainState, step: int, now: bool) -> Back | None:
        """Like `checked`, before a state is saved: every step is checked, and every number of states saved before.

        Args:
          state: after `step`.
          step: the last step.
          now: check the numbers of this state too. Otherwise they are checked while it is being saved.

        Raises:
          UserError: as `checked`, or a number of a state is not finite.
        """
        if (back := self.checked(state, step, wait=True)) is not None:
            return back
        self.checkpoints.wait()
        bad = self.checkpoints.unsound
        if now and bad is None and not all_finite({"params": state.params, "opt": state.opt}):
            bad = step
        if bad is None:
            return None
        what = f"parameters or optimiser state are no longer finite after step {bad}"
        if self.policy == "roll_back":
            return self._roll_back(state, step, what)
        raise UserError(
            f"{self.name}: {what}, and are not saved; lower optim.lr, clip with optim.clip_norm, or continue with"
            " --nonfinite roll_back"
        )

    def saving(self, step: int) -> JsonObject:
        """What is to be saved with the checkpoint of a step."""
        if self.spikes.threshold and step % self.spikes.rewind == 0 and step not in self.anchors:
            self.anchors.append(step)
            while len(self.anchors) > 1 and self.anchors[1] <= step - self.spikes.rewind:
                del self.anchors[0]  # no later spike returns that far
        return {"skipped": self.skipped, "anchors": self.anchors, "losses": list(self._losses)}

    def _skip(self, number: int, what: str) -> None:
        """Notes a step that is not finite, whose update was skipped."""
        if self.policy == "stop":
            raise UserError(
                f"{self.name}: {what} at step {number}; lower optim.lr, clip with optim.clip_norm, or continue with"
                " --nonfinite skip or roll_back"
            )
        self._in_a_row += 1
        if self._in_a_row == MOST_IN_A_ROW:
            raise UserError(f"{self.name}: {what} at step {number}, as for {MOST_IN_A_ROW} steps; lower optim.lr")
        self.say(f"{self.name}: {what} at step {number}: its update is skipped")

    def _limit(self) -> float | None:
        """The highest loss that is no spike; None before there are enough losses, or if spikes are not watched."""
        if not self.spikes.threshold or len(self._losses) < self.spikes.window:
            return None
        losses = [loss for _, loss in self._losses][-self.spikes.window :]
        mean = math.fsum(losses) / len(losses)
        std = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / len(losses))
        return mean + self.spikes.threshold * max(std, SMALLEST_STD * abs(mean))

    def _target(self, number: int) -> int | None:
        """The step of the checkpoint to return to from a bad step."""
        self.checkpoints.wait()
        if not self.spikes.threshold:
            return self.checkpoints.latest()
        found = self.checkpoints.found()  # a save may have failed, or its state was not finite
        there = [step for step in self.anchors if step <= number - self.spikes.rewind and step in found]
        return there[-1] if there else None

    def _roll_back(self, state: TrainState, number: int, what: str) -> Back:
        """A checkpoint as if it were the state after step `number`."""
        self._pending.clear()
        saved = self._target(number)
        if saved is None:
            raise UserError(f"{self.name}: {what}, and there is no checkpoint yet to return to; lower optim.lr")
        if sum(first == saved for first, _ in self.skipped) == MOST_FROM_ONE:
            raise UserError(f"{self.name}: {what}, again after {MOST_FROM_ONE} returns to step {saved}; lower optim.lr")
        self.say(f"{self.name}: {what}: continuing with the state of step {saved}, without the batches since")
        state = self.checkpoints.restore(state, saved, any_experiment=True)
        self.skipped.append((saved, number))
        self.anchors = [step for step in self.anchors if step <= saved]
        while self._losses and self._losses[-1][0] > saved:
            self._losses.pop()
        counter = jax.device_put(np.asarray(number, state.step.dtype), state.step.sharding)
        return Back(dataclasses.replace(state, step=counter), number, number - saved)
