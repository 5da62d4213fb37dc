"""Sums of metrics since the last log line, which survive a stop between two lines."""

import jax
import numpy as np

from bertgpt.training.log import means
from bertgpt.types import JsonObject, Sum


class Window:
    """The steps since the last log line.

    A checkpoint holds the sums since the line before it. A run that is resumed there goes on with them, so that its
    lines are those of a run that was never stopped. Sums are added step by step in float64: interruptions do not change
    a bit.
    """

    def __init__(self, saved: JsonObject):
        """`saved`: the `as_json` of the checkpoint that the run continues from; {} at the start."""
        self._sums = {name: Sum(np.array(a), np.array(b)) for name, (a, b) in saved.get("sums", {}).items()}
        self.carried = int(self._sums["tokens"].sum) if self._sums else 0
        """non-padding tokens that an earlier session processed"""
        self.flops = 0
        """matmul FLOPs of this session's steps"""
        self.skipped = int(saved.get("skipped", 0))
        """batches that were left out"""
        self._pending: list[dict[str, Sum]] = []

    def add(self, metrics: dict[str, Sum], flops: int) -> None:
        """Adds a step, without waiting for it."""
        self._pending.append(metrics)
        self.flops += flops

    def drop(self, steps: int, skipped: int) -> None:
        """Forgets the last steps, none of which is in a log line, and counts batches that were left out."""
        del self._pending[len(self._pending) - steps :]
        self.skipped += skipped

    def sums(self) -> dict[str, Sum]:
        """Sums over all steps, fetched from the device at once."""
        for metrics in jax.device_get(self._pending):
            step = jax.tree.map(lambda x: np.asarray(x, np.float64), metrics)
            self._sums = jax.tree.map(np.add, self._sums, step) if self._sums else step
        self._pending.clear()
        return self._sums

    def values(self) -> dict[str, float]:
        """Means over the steps; NaN where none was finite. Numbers of steps not finite and of batches left out."""
        sums = dict(self.sums())
        counts = {"nonfinite_steps": int(sums.pop("nonfinite").sum), "skipped_batches": self.skipped}
        del sums["tokens"]
        empty = {name: float("nan") for name in ("loss", "grad_norm") if not sums[name].weight}
        return means(sums) | empty | counts

    def tokens(self) -> int:
        """Non-padding tokens of this session's steps."""
        return int(self.sums()["tokens"].sum) - self.carried if self.sums() else 0

    def clear(self) -> None:
        """Starts the next line."""
        self._sums, self.carried, self.flops, self.skipped = {}, 0, 0, 0

    def as_json(self) -> JsonObject:
        """The sums, for a checkpoint."""
        sums = {name: [total.sum.tolist(), total.weight.tolist()] for name, total in self.sums().items()}
        return {"sums": sums, "skipped": self.skipped}
