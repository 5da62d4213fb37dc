"""Several data parts as one: side by side in every batch (`Mixture`), or one after another (`Curriculum`).

Both keep the promise of `Batches`: batch `step` is a function of (seed, step), in closed form, without state.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.loader import Batches, Dataset, Order, permute
from bertgpt.data.tokenizer import Tokenizer, WordPiece
from bertgpt.types import DataRequest, UserError

log = logging.getLogger(__name__)

# Dataset over which a mixture's proportions are exact. A block grows until its rarest part has FEWEST rows, so that
# rounding is slight, but not beyond LARGEST_BLOCK.
BLOCK, LARGEST_BLOCK, FEWEST = 2**10, 2**20, 16


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture."""

    name: str
    """name in errors and logs"""
    data: Any
    """a Corpus or another data part whose batches have the same keys and shapes as the others'"""
    weight: float | None = None
    """share of the rows, relative to the other parts'; None, for all parts alike: by the size of the train split"""


def check_parts(owner: str, parts: tuple[Part, ...], temperature: float) -> None:
    """Raises UserError, in the name of `owner`, where parts cannot be mixed."""
    names = [part.name for part in parts]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{owner}: parts {names} must be one or more, each with a name of its own")
    for part in parts:
        if part.weight is not None and not 0.0 < part.weight < math.inf:
            raise UserError(f"{owner}: part {part.name!r}: weight={part.weight} must be positive and finite")
    unweighted = [part.name for part in parts if part.weight is None]
    if unweighted and len(unweighted) < len(names):
        raise UserError(f"{owner}: part {unweighted[0]!r} has no weight, others have; give all of them one or none")
    if not 0.0 < temperature < math.inf:
        raise UserError(f"{owner}: temperature={temperature} must be positive and finite")
    if temperature != 1.0 and not unweighted:
        raise UserError(f"{owner}: temperature={temperature} is for parts without weights; these have them")


def shares_of(
    parts: tuple[Part, ...], sizes: Int[np.ndarray, " parts"], temperature: float
) -> Float[np.ndarray, " parts"]:
    """Share of each part, by its weight, or without weights by size^(1 / temperature); they sum to 1."""
    if parts[0].weight is None:
        weights = sizes.astype(float) ** (1.0 / temperature)
    else:
        weights = np.array([part.weight for part in parts], float)
    return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Dataset of several parts, interleaved at random in fixed proportions; each part repeats when it is through.

    Batches also hold `part`, int32 [B]: which part a row is of, −1 for rows that only fill up a batch; `row` counts on
    from part to part. Held-out splits go through all parts, one after another, each row once, whatever the weights; a
    single part is evaluated by `part(name)`, which is a data part itself.
    """

    parts: tuple[Part, ...]
    """the sources"""
    temperature: float = 1.0
    """without weights, a part's share is its number of rows to the power 1 / temperature: 1 proportional, large equal
    (Raffel et al. 2020 §3.5.2)"""
    tokenizer: Any = WordPiece()
    """a tokenizer to train on the train splits of all parts, or the path of one; None: init_from's. The parts' own
    do not count"""

    def __post_init__(self):
        check_parts("Mixture", self.parts, self.temperature)
        for part in self.parts:
            if part.data.seq_len != self.seq_len:
                first = self.parts[0].name
                raise UserError(
                    f"Mixture: part {part.name!r} has seq_len={part.data.seq_len}, {first!r} has {self.seq_len}"
                )

    @property
    def seq_len(self) -> int:
        """Tokens in a row, of every part."""
        return self.parts[0].data.seq_len

    def part(self, name: str) -> Any:
        """The data part of this name; its `make` gives batches of it alone."""
        for part in self.parts:
            if part.name == name:
                return part.data
        raise UserError(f"Mixture: no part {name!r}; there are {', '.join(repr(part.name) for part in self.parts)}")

    def texts(self) -> Iterator[str]:
        """The training texts of all parts."""
        for part in self.parts:
            if not hasattr(part.data, "texts"):
                raise UserError(f"Mixture: part {part.name!r} has no running text to train a tokenizer on; name one")
            yield from part.data.texts()

    def train_tokenizer(self) -> Tokenizer:
        """Trains the tokenizer that `tokenizer` describes, on all training texts once, whatever the weights."""
        return self.tokenizer.make(self.texts)

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split of all parts.

        Raises:
          UserError: parts whose batches differ in keys or shapes, or a part too rare for LARGEST_BLOCK.
        """
        made = [part.data.make(request) for part in self.parts]
        names = [part.name for part in self.parts]
        for name, batches in zip(names, made, strict=True):
            if type(batches) is not Batches:
                raise UserError(f"Mixture: part {name!r} is a curriculum; make a curriculum of mixtures instead")
        rows = MixedDataset(names, [batches.dataset for batches in made])
        if not request.shuffle:
            return Batches(rows, request.batch_size, request.seed, request.shuffle)
        counts = block_counts(names, self.shares(rows.sizes))
        log.info(
            "mixture, %s: %s",
            request.split,
            ", ".join(
                f"{name} {100 * count / counts.sum():.2f} % ({size:,} rows)"
                for name, count, size in zip(names, counts, rows.sizes, strict=True)
            ),
        )
        orders = tuple(batches.order for batches in made)
        order = functools.partial(
            mixed, counts=counts, orders=orders, first_rows=rows.ends - rows.sizes, seed=request.seed
        )
        return Batches(rows, request.batch_size, request.seed, request.shuffle, order)

    def shares(self, sizes: Int[np.ndarray, " parts"]) -> Float[np.ndarray, " parts"]:
        """Share of each part, given their numbers of rows; they sum to 1."""
        return shares_of(self.parts, sizes, self.temperature)

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new texts, as the first part makes them."""
        return self.parts[0].data.predict_batches(records, batch_size, tokenizer)

    def describe(self, rows: Dataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints, as the first part has it."""
        return self.parts[0].data.describe(rows, outputs)


class MixedDataset:
    """The rows of all parts one after another; `gather` adds `part`."""

    def __init__(self, names: Sequence[str], parts: Sequence[Dataset]):
        self.parts = tuple(parts)
        self.sizes = np.array([len(rows) for rows in parts])
        self.ends = np.cumsum(self.sizes)
        self.padding = float(np.average([rows.padding for rows in parts], weights=self.sizes))
        kinds = [
            {key: (array.dtype, array.shape[1:]) for key, array in rows.gather(np.zeros(1, int)).items()}
            for rows in parts
        ]
        self.kinds = {key: kind for key, kind in kinds[0].items() if key != "part"}  # a mixture of mixtures has its own
        for name, other in zip(names, kinds, strict=True):
            for key in sorted((other.keys() | self.kinds.keys()) - {"part"}):
                if other.get(key) != self.kinds.get(key):
                    here, there = ("{} {}".format(*k[key]) if key in k else "none" for k in (self.kinds, other))
                    raise UserError(f"Mixture: parts {names[0]!r} and {name!r} differ in {key!r}: {here} and {there}")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def gather(self, rows: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        part = np.searchsorted(self.ends, rows, side="right")
        batch = {key: np.empty((len(rows), *shape), dtype) for key, (dtype, shape) in self.kinds.items()}
        for p in np.unique(part):
            mine = np.flatnonzero(part == p)
            found = self.parts[p].gather(rows[mine] - (self.ends[p] - self.sizes[p]))
            for key, array in batch.items():
                array[mine] = found[key]
        return batch | {"part": part.astype(np.int32)}


def block_counts(names: Sequence[str], shares: Float[np.ndarray, " parts"]) -> Int[np.ndarray, " parts"]:
    """Dataset of each part in a block, by largest remainder: each is within 1 of its share, and they sum to the block.

    Raises:
      UserError: a part that has no row in the largest block.
    """
    block = BLOCK
    while shares.min() * block < FEWEST and block < LARGEST_BLOCK:
        block *= 2
    counts = np.floor(shares * block).astype(int)
    largest = np.argsort(-(shares * block - counts), kind="stable")
    counts[largest[: block - counts.sum()]] += 1
    for name, count, share in zip(names, counts, shares, strict=True):
        if not count:
            raise UserError(f"Mixture: part {name!r} has a share of {share:.1e}, not one row in {block:,}")
    return counts


def mixed(
    place: Int[np.ndarray, " B"],
    counts: Int[np.ndarray, " parts"],
    orders: tuple[Order, ...],
    first_rows: Int[np.ndarray, " parts"],
    seed: int,
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(row over all parts, epoch of its part) at these places of the order of a mixture.

    The order is cut into blocks of Σ counts places. In each, a permutation of its own deals the places out to slots, of
    which the first counts[0] are part 0's, and so on; slot i of part p in block b holds what is at place
    b · counts[p] + i of that part's own order. So after n blocks exactly the first n · counts[p] places of p were read.
    """
    block, within = np.divmod(place, counts.sum())
    slot = np.empty_like(place)
    for b in np.unique(block):
        slot[block == b] = permute(within[block == b], int(counts.sum()), seed, int(b))
    ends = np.cumsum(counts)
    part = np.searchsorted(ends, slot, side="right")
    own = block * counts[part] + slot - (ends - counts)[part]
    row, epoch = np.empty_like(place), np.empty_like(place)
    for p in np.unique(part):
        mine = part == p
        row[mine], epoch[mine] = orders[p](own[mine])
        row[mine] += first_rows[p]
    return row, epoch


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Batches of `short` before `switch_step`, of `long` from then on, each from its own beginning.

    BERT trains on rows of 128 tokens for 90 % of the steps, then on 512 (Devlin et al. 2019, A.2). A `short` or `long`
    that is a curriculum itself makes more than two stages; the inner one's steps count from its own beginning.
    Evaluation, prediction and the tokenizer are those of `long`.
    """

    short: Any
    """data part of the first stage"""
    long: Any
    """data part of the second stage"""
    switch_step: int
    """the first step that reads `long`"""
    short_factor: int = 1
    """rows in a batch of `short`, as a multiple of the batch size: 4 where its rows are a quarter as long"""

    def __post_init__(self):
        for field in ("switch_step", "short_factor"):
            if getattr(self, field) < 1:
                raise UserError(f"Curriculum: {field}={getattr(self, field)} must be at least 1")
        if self.short.seq_len > self.long.seq_len:
            raise UserError(
                f"Curriculum: short.seq_len={self.short.seq_len} exceeds long.seq_len={self.long.seq_len}, for which"
                " the model is made"
            )

    @property
    def seq_len(self) -> int:
        """Tokens in the longest row."""
        return self.long.seq_len

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of all stages."""
        return self.long.tokenizer

    def train_tokenizer(self) -> Tokenizer:
        """Trains the tokenizer that `long` describes, on its training texts."""
        return self.long.train_tokenizer()

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split: shuffled, those of the stages one after another; in order, those of `long` alone.

        Raises:
          UserError: stages whose batches differ in keys.
        """
        long = self.long.make(request)
        if not request.shuffle:
            return long
        short = self.short.make(request._replace(batch_size=request.batch_size * self.short_factor))
        differ = short[0].keys() ^ long[0].keys()
        if differ:
            raise UserError(f"Curriculum: only one of short and long has {', '.join(map(repr, sorted(differ)))}")
        return StagedBatches(short, long, self.switch_step)

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new texts, as `long` makes them."""
        return self.long.predict_batches(records, batch_size, tokenizer)

    def describe(self, rows: Dataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints, as `long` has it."""
        return self.long.describe(rows, outputs)


class StagedBatches(Batches):
    """The batches of `first` before `switch_step`, then those of `then`, whose rows are called its rows."""

    def __init__(self, first: Batches, then: Batches, switch_step: int):
        super().__init__(then.dataset, then.batch_size, then.seed, shuffle=True, order=then.order)
        self.first, self.then, self.switch_step = first, then, switch_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps from the beginning until as much was read as the split holds, in whichever stage."""
        short, long = self.first.steps_per_epoch, self.then.steps_per_epoch
        left = max(0, short - self.switch_step)  # steps of `first` that its epoch lacks at the switch
        return min(short, self.switch_step) + -(-left * long // short)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.first[step] if step < self.switch_step else self.then[step - self.switch_step]
