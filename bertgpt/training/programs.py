"""Programs of a run: compiled in the background where possible, and once for each shape of batch."""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import jax

from bertgpt.config import Experiment
from bertgpt.distributed import process_count
from bertgpt.runs.compiler import COMPILING
from bertgpt.training.memory import check_program_memory
from bertgpt.training.state import TrainState
from bertgpt.training.step import StepResult
from bertgpt.types import Batch, Params

Result = TypeVar("Result")
Step = Callable[[TrainState, Batch], StepResult]
Submit = Callable[[Callable[[], Result]], "concurrent.futures.Future[Result]"]
"""runs a function in a thread"""


@contextlib.contextmanager
def background() -> Iterator[Submit]:
    """Threads that compile: XLA does not hold Python's lock.

    Functions are traced and lowered by the caller, because another thread does not know the caller's mesh. Calling a
    jitted function after its `lower(…).compile()` finds the program, and compiles nothing.

    Several processes compile one program at a time, all in the same order, in case their compilers exchange anything.

    What has not begun when the block ends is dropped. The interpreter waits for what has, before it exits; the command
    line does not (`cli.main.end`).
    """
    pool = concurrent.futures.ThreadPoolExecutor(2 if process_count() == 1 else 1, COMPILING)
    try:
        yield pool.submit
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def shapes_of(batch: Batch) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shape of every field of a batch."""
    return tuple((name, array.shape) for name, array in batch.items())


class Program:
    """A jitted function of (parameters, batch, number) that can be compiled before it is called."""

    def __init__(self, function: jax.stages.Wrapped):
        self._function = function
        self._compiling: dict[tuple, concurrent.futures.Future] = {}

    def start(self, submit: Submit, params: Params, batch: Batch, number: int) -> None:
        """Traces the function for batches of this shape, and compiles it in the background."""
        if (shapes := shapes_of(batch)) not in self._compiling:
            self._compiling[shapes] = submit(self._function.lower(params, batch, number).compile)

    def __call__(self, params: Params, batch: Batch, number: int) -> object:
        if (compiling := self._compiling.get(shapes_of(batch))) is not None:
            compiling.exception()  # waits; what has failed fails again below, where it is expected
        return self._function(params, batch, number)


class StepPrograms:
    """The training step, compiled once for each shape of batch: a curriculum has several."""

    def __init__(
        self,
        train_step: jax.stages.Wrapped,
        experiment: Experiment,
        flops: Callable[[Params, Batch], int],
        submit: Submit,
        waiting: Callable[[TrainState], AbstractContextManager[None]] = lambda state: contextlib.nullcontext(),
    ):
        """Programs of `train_step`, none of which is compiled yet.

        Args:
          train_step: from `make_train_step`.
          experiment: whose step it is, for advice where memory is short.
          flops: (params, batch) → matmul FLOPs of a step.
          submit: of `background`.
          waiting: the context, given the state, in which the loop waits for a program.
        """
        self._step, self._experiment, self._flops = train_step, experiment, flops
        self._submit, self._waiting = submit, waiting
        self._started: dict[tuple, tuple[concurrent.futures.Future[jax.stages.Compiled], int]] = {}
        self._ready: dict[tuple, tuple[Step, int]] = {}
        self.seconds = 0.0
        """spent on tracing, lowering and compiling"""

    def start(self, state: TrainState, batch: Batch) -> None:
        """Traces the step for batches of this shape, and compiles it in the background. Arrays may be their shapes."""
        shapes = shapes_of(batch)
        if shapes in self._started:
            return
        start = time.perf_counter()
        lowered = self._step.lower(state, batch)
        self.seconds += time.perf_counter() - start

        def compiled() -> jax.stages.Compiled:
            start = time.perf_counter()
            program = lowered.compile()
            self.seconds += time.perf_counter() - start
            return program

        compiling = self._submit(compiled)
        self._started[shapes] = compiling, self._flops(state.params, batch)  # counted while the other thread compiles

    def get(self, state: TrainState, batch: Batch) -> tuple[Step, int]:
        """(the compiled step for batches of this shape, its matmul FLOPs).

        Raises:
          UserError: the step needs more memory than a device has.
        """
        shapes = shapes_of(batch)
        if shapes not in self._ready:
            with self._waiting(state):
                self.start(state, batch)
                compiling, flops = self._started[shapes]
                program = compiling.result()
                check_program_memory(program, state.step.addressable_shards[0].device, self._experiment)
                self._ready[shapes] = program, flops
        return self._ready[shapes]
