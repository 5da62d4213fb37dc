"""Batches of a dataset. Batch `step` is a function of (seed, step): a run resumes anywhere without iterator state."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from bertgpt.types import Batch, BatchSpec, Dataset, Field, UserError

ENDLESS = 2**40  # length of shuffled batches, which repeat for ever

ROW_FIELDS: BatchSpec = {"row": Field("int32", ("batch",), pad=-1), "epoch": Field("int32", ("batch",), pad=-1)}
"""What `Batches` adds to the fields of its dataset: see there."""

# Positions in the order of training → (index of the example at each, epoch it belongs to).
Order = Callable[[Int[np.ndarray, " B"]], tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]]
Placed = TypeVar("Placed")


class Shards(NamedTuple):
    """The parts of each batch that one host holds, of all parts, which are equal: what it gathers of a batch."""

    own: tuple[int, ...] = (0,)
    """in ascending order"""
    total: int = 1

    def places(self, size: int) -> Int[np.ndarray, " b"]:
        """Positions of its examples in a batch of `size` examples."""
        parts = np.arange(size).reshape(self.total, -1)
        return parts[list(self.own)].ravel()


WHOLE = Shards()
"""all of a batch"""


class Batches:
    """`batches[step]` is the global batch of that step: the examples that the dataset gathers, and of each example

      row     its index in the split (modulo 2³² beyond int32), and
      epoch   how often the split was read before. Static masking takes its noise from these two.

    Shuffled: endless; each epoch is a permutation of its own, and a batch may span the end of one epoch and the start
    of the next. In order: each example once, epoch 0; the last batch is padded with examples that hold the `pad` value
    of every field.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, shuffle: bool, order: Order | None = None):
        """Batches of `dataset`.

        Args:
          dataset: the examples.
          batch_size: examples in a batch.
          seed: seed of the order.
          shuffle: endless batches in random order; otherwise each example once, in order.
          order: replaces one permutation after another; used only if `shuffle`.

        Raises:
          UserError: the dataset is empty.
        """
        if not len(dataset):
            raise UserError("zero training examples: the split is empty")
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        if not shuffle:
            self.order = in_order
        else:
            self.order = functools.partial(epoch_by_epoch, count=len(dataset), seed=seed) if order is None else order

    @functools.cached_property
    def spec(self) -> BatchSpec:
        """The fields of a batch."""
        return {**self.dataset.spec, **ROW_FIELDS}

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that hold each example once, rounded up."""
        return math.ceil(len(self.dataset) / self.batch_size)

    def __len__(self) -> int:
        return ENDLESS if self.shuffle else self.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, WHOLE)

    def part(self, step: int, shards: Shards) -> Batch:
        """Only those examples of `batches[step]` that a host holds; nothing else is gathered."""
        position = step * self.batch_size + shards.places(self.batch_size)
        real = position if self.shuffle else position[position < len(self.dataset)]
        row, epoch = self.order(real if len(real) else np.zeros(1, int))  # one, for the shapes of a host without any
        batch = self.gather(row, epoch) | {"row": row.astype(np.int32), "epoch": epoch.astype(np.int32)}
        if len(real) == len(position):
            return batch
        return {name: _fill(array[: len(real)], len(position), self.spec[name].pad) for name, array in batch.items()}

    def gather(self, row: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]) -> Batch:
        """The examples at these indices. Subclasses may vary them from epoch to epoch."""
        del epoch
        return self.dataset.gather(row)


def _fill(array: np.ndarray, count: int, value: int | float) -> np.ndarray:
    """`array` with more examples, all of which hold `value`, so that there are `count`."""
    return np.concatenate([array, np.full((count - len(array), *array.shape[1:]), value, array.dtype)])


def check_needs(
    needs: BatchSpec, spec: BatchSpec, objective: str, data: str, hint: Callable[[str], str] = lambda field: ""
) -> None:
    """Checks that batches hold what an objective reads.

    Args:
      needs: the objective's `needs`.
      spec: the `spec` of the batches.
      objective: name of the objective, for the error.
      data: name of the data config, for the error.
      hint: field → how data can provide it, or "".

    Raises:
      UserError: a field is missing, or has another type or other axes.
    """
    for name, needed in needs.items():
        if name not in spec:
            raise UserError(
                f"{objective} needs the field {name!r}, which batches of {data} do not have; they have"
                f" {', '.join(sorted(spec))}" + (f": {advice}" if (advice := hint(name)) else "")
            )
        found = spec[name]
        if (found.dtype, found.axes) != (needed.dtype, needed.axes):
            raise UserError(
                f"{objective} needs the field {name!r} as {describe_field(needed)}, but batches of {data} have it as"
                f" {describe_field(found)}"
            )


def describe_field(field: Field | None) -> str:
    """A field in words, such as "int32 [batch, sequence]"."""
    return "none" if field is None else f"{field.dtype} [{', '.join(field.axes)}]"


# -- order ------------------------------------------------------------------------------------------------------------


def in_order(position: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """Each example once: (index, epoch 0)."""
    return position, np.zeros_like(position)


def epoch_by_epoch(
    position: Int[np.ndarray, " B"], count: int, seed: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(index, epoch) at these positions of an endless order in which each epoch is a permutation of its own."""
    epoch, within = np.divmod(position, count)
    row = np.empty_like(position)
    for e in np.unique(epoch):
        row[epoch == e] = permute(within[epoch == e], count, seed, int(e))
    return row, epoch


def permute(positions: Int[np.ndarray, " B"], count: int, seed: int, epoch: int) -> Int[np.ndarray, " B"]:
    """A pseudo-random permutation of range(count), evaluated only at `positions`: it takes no memory for any count.

    A Feistel network over the smallest square power of two that holds `count`. Values outside the range are permuted
    again until they are inside (cycle walking), which keeps the map one-to-one.
    """
    half = np.uint64(max(1, math.ceil(math.log2(max(count, 2)) / 2)))
    low = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(6, np.uint64)
    result = positions.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        x = result[outside]
        left, right = x >> half, x & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        result[outside] = (left << half) | right
        outside = result >= count
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def prefetch(
    batches: Batches,
    start: int,
    stop: int,
    place: Callable[[Batch], Placed],
    shards: Shards = WHOLE,
    buffer: int = 2,
) -> Iterator[Placed]:
    """place(batches.part(step, shards)) for start ≤ step < stop. A thread makes them `buffer` steps ahead.

    It also places them on the devices: the training loop, whose computations occupy all processors, only takes them.
    """
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
    steps = grain.MapDataset.range(start, stop).map(lambda step: place(batches.part(int(step), shards)))
    return iter(steps.to_iter_dataset(options))
