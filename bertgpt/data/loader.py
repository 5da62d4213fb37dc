"""The order of rows: batch `step` is a function of (seed, step), so a run resumes anywhere without iterator state."""

import collections
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from bertgpt.types import UserError

ENDLESS = 2**40  # batches of a training set, which repeats for ever


@runtime_checkable
class Dataset(Protocol):
    """Something that has rows and can gather any of them into a batch."""

    def __len__(self) -> int: ...

    def gather(self, rows: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]: ...


# Places in the order of training → (row of each, epoch it belongs to).
Order = Callable[[Int[np.ndarray, " B"]], tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]]


class Batches:
    """`batches[step]` is the global batch of that step: what its rows gather, and of each row, as int32 [B],

      row     its number in the split (modulo 2³² beyond int32), and
      epoch   how often the split was read before: static masking draws its noise from the two.

    Shuffled: endless; each epoch is a permutation of its own, and a batch may span the end of one and the start of the
    next. In order: each row once, epoch 0; the last batch is filled up with rows of padding, segment_ids 0, whose
    labels, row and epoch are −1, “ignore”.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, shuffle: bool, order: Order | None = None):
        """`order` stands in place of one permutation after another; it counts for shuffled batches alone."""
        if not len(dataset):
            raise UserError("zero training examples: the split has no rows")
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        if not shuffle:
            self.order = in_order
        else:
            self.order = functools.partial(epoch_by_epoch, count=len(dataset), seed=seed) if order is None else order

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __len__(self) -> int:
        return ENDLESS if self.shuffle else self.steps_per_epoch

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        place = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        row, epoch = self.order(place if self.shuffle else place[place < len(self.dataset)])
        batch = self.dataset.gather(row) | {"row": row.astype(np.int32), "epoch": epoch.astype(np.int32)}
        return batch if self.shuffle else self._fill(batch)

    def _fill(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        missing = self.batch_size - len(batch["input_ids"])
        widths = {name: [(0, missing)] + [(0, 0)] * (array.ndim - 1) for name, array in batch.items()}
        return {name: np.pad(a, widths[name], constant_values=-1 if a.ndim == 1 else 0) for name, a in batch.items()}


def in_order(place: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """Each row once: (row, epoch 0)."""
    return place, np.zeros_like(place)


def epoch_by_epoch(
    place: Int[np.ndarray, " B"], count: int, seed: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(row, epoch) at these places of an endless order in which each epoch is a permutation of its own."""
    epoch, within = np.divmod(place, count)
    row = np.empty_like(place)
    for e in np.unique(epoch):
        row[epoch == e] = permute(within[epoch == e], count, seed, int(e))
    return row, epoch


def permute(places: Int[np.ndarray, " B"], count: int, seed: int, epoch: int) -> Int[np.ndarray, " B"]:
    """A pseudo-random permutation of range(count), evaluated at `places` alone: no memory, whatever the count.

    A Feistel network over the smallest square power of two that holds `count`; what falls outside walks on until it is
    inside, which keeps the map one to one.
    """
    half = np.uint64(max(1, math.ceil(math.log2(max(count, 2)) / 2)))
    low = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(6, np.uint64)
    result = places.astype(np.uint64)
    walking = np.ones(len(result), bool)
    while walking.any():
        x = result[walking]
        left, right = x >> half, x & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        result[walking] = (left << half) | right
        walking = result >= count
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def prefetch(batches: Batches, start: int, stop: int, place: Callable[[dict], Any], buffer: int = 2) -> Iterator[Any]:
    """Yields place(batches[step]) for start ≤ step < stop, read ahead by a thread and placed `buffer` steps ahead."""
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
    source = iter(grain.MapDataset.source(batches)[start:stop].to_iter_dataset(options))
    ahead: collections.deque = collections.deque()
    for batch in source:
        ahead.append(place(batch))
        if len(ahead) > buffer:
            yield ahead.popleft()
    yield from ahead
