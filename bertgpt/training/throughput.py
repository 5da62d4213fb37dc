"""Throughput: matmul FLOPs counted from the program, the peak rate of the devices, a stopwatch."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.training.chips import chip_of
from bertgpt.types import JsonObject


def count_matmul(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of all matrix products in `function(*args)`, as traced: 2·M·N·K each, times the iterations of loops.

    The function is not run. Elementwise operations do not count, as is usual in utilisation figures.
    """

    def count(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                depth = np.prod([eqn.invars[0].aval.shape[axis] for axis in contract])
                total += 2 * int(np.prod(eqn.outvars[0].aval.shape) * depth)
            inner = sum(count(sub) for value in eqn.params.values() for sub in _jaxprs(value))
            if eqn.primitive.name == "pallas_call":  # its kernel runs for each point of the grid
                inner *= int(np.prod([size for size in eqn.params["grid_mapping"].grid if isinstance(size, int)]))
            total += inner * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxprs(value: Any) -> Iterator[Any]:
    for item in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(item, "jaxpr", item)  # a ClosedJaxpr holds a Jaxpr
        if hasattr(inner, "eqns"):
            yield inner


def peak_rate(devices: Sequence[jax.Device]) -> float:
    """Matmul FLOP/s of these devices: the data sheet's figure if known, else measured on one float32 product."""
    if chip := chip_of(devices[0].device_kind):
        return chip.flops * len(devices)
    # Host devices share the cores, so more of them are not faster.
    return matmul_rate(1024, "float32")


@functools.cache
def matmul_rate(size: int, dtype: str) -> float:
    """FLOP/s of one product of square matrices on one device, the best of five."""
    x = jax.device_put(np.ones((size, size), jnp.dtype(dtype)))  # not computed, which would be two more programs
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


class Meter:
    """A stopwatch for training steps: time inside `paused`, for compilation, evaluation and saving, does not count."""

    def __init__(self, peak: float):
        """`peak`: FLOP/s of the devices."""
        self.peak = peak
        self.start()

    def start(self, tokens: int = 0, seconds: float = 0.0) -> None:
        """Starts the first interval, with the tokens and seconds of the run up to its last log line."""
        self.tokens, self.seconds = tokens, seconds
        self._mark, self._paused, self._waited, self._saving = time.perf_counter(), 0.0, 0.0, 0.0
        self.stalls: list[float] = []
        """seconds that training has waited for each checkpoint"""

    @contextlib.contextmanager
    def paused(self, after: Any = None) -> Iterator[None]:
        """Time in here does not count; it starts when the arrays `after`, results of the last step, are computed."""
        jax.block_until_ready(after)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self, last: jax.Array | None = None) -> Iterator[None]:
        """Time spent waiting for input; it counts, and is also reported as `data_wait`.

        With `last`, a result of the last step, it is only reported if that step has ended before the input came: until
        then the devices are busy, as the host runs several steps ahead of them.
        """
        start = time.perf_counter()
        yield
        if last is None or last.is_ready():
            self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Time that training waits for a checkpoint, which is reported as `save_wait`."""
        start = time.perf_counter()
        yield
        self.stalls.append(time.perf_counter() - start)
        self._saving += self.stalls[-1]

    def lap(self, flops: float, tokens: int, carried: int = 0) -> dict[str, float]:
        """Ends an interval and returns its rates.

        Args:
          flops: matmul FLOPs of its steps.
          tokens: their non-padding tokens.
          carried: tokens of steps since the last log line that an earlier session of the run took.
        """
        now = time.perf_counter()
        seconds = max(now - self._mark - self._paused, 1e-9)
        self.tokens += tokens + carried
        self.seconds += seconds * (tokens + carried) / max(tokens, 1)  # earlier sessions were as fast
        rates = {
            "tokens": self.tokens,
            "tokens_per_second": tokens / seconds,
            "matmul_utilisation": flops / seconds / self.peak,
            "data_wait": self._waited / seconds,
            "save_wait": self._saving,
        }
        self._mark, self._paused, self._waited, self._saving = now, 0.0, 0.0, 0.0
        return rates

    def totals(self) -> JsonObject:
        """Training seconds, tokens and rate of the whole run; how long this session waited for checkpoints."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        waits = {"saves": len(self.stalls), "seconds": sum(self.stalls), "longest": max(self.stalls, default=0.0)}
        return {"seconds": self.seconds, "tokens": self.tokens, "tokens_per_second": rate, "save_wait": waits}
