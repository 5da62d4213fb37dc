"""Several data configs as one: mixed within every batch (`Mixture`), or one after another (`Curriculum`).

As in `Batches`, batch `step` is a function of (seed, step), in closed form, without state.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.loader import Batches, Order, Shards, describe_field, permute
from bertgpt.data.tokenizer import Tokenizer, WordPiece
from bertgpt.ranges import Count, Positive, check_fields
from bertgpt.types import (
    Batch,
    BatchSpec,
    DataConfig,
    DataRequest,
    Dataset,
    DataWarning,
    Field,
    JsonObject,
    Split,
    TokenSource,
    UserError,
)

log = logging.getLogger(__name__)

# Number of examples over which the proportions of a mixture are exact. A block grows until its rarest part has FEWEST
# examples, so that rounding is slight, but not beyond LARGEST_BLOCK.
BLOCK, LARGEST_BLOCK, FEWEST = 2**10, 2**20, 16


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture."""

    name: str
    """name in errors and logs"""
    data: Any
    """a Corpus or another data config whose batches have the same fields and shapes as the others'"""
    weight: Positive | None = None
    """share of the examples, relative to the other parts'; None, for all parts alike: by the size of the train split"""


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
        raise UserError(
            f"{owner}: part {unweighted[0]!r} has no weight, others have; give weights to all parts or none"
        )
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
class Mixture(DataConfig):
    """Examples of several parts, interleaved at random in fixed proportions; each part repeats when it is exhausted.

    Batches also hold `part`, int32 [batch]: the part of each example, −1 for padding. `row` continues from part to
    part. Held-out splits contain all parts, one after another, each example once, whatever the weights; to evaluate a
    single part, use `part(name)`, which is a data config itself.
    """

    parts: tuple[Part, ...]
    """the sources"""
    temperature: Positive = 1.0
    """without weights, a part's share is its number of examples to the power 1 / temperature: 1 proportional, large
    equal (Raffel et al. 2020 §3.5.2)"""
    tokenizer: Any = WordPiece()
    """a tokenizer to train on the train splits of all parts, or the path of one; None: init_from's. The tokenizers of
    the parts are not used"""

    def __post_init__(self):
        check_parts("Mixture", self.parts, self.temperature)
        check_fields(self)
        for part in self.parts:
            if part.data.seq_len != self.seq_len:
                first = self.parts[0].name
                raise UserError(
                    f"Mixture: part {part.name!r} has seq_len={part.data.seq_len}, {first!r} has {self.seq_len}"
                )

    @property
    def seq_len(self) -> int:
        """Tokens in a sequence, of every part."""
        return self.parts[0].data.seq_len

    @property
    def num_types(self) -> int:
        """Most token types of any part."""
        return max(part.data.num_types for part in self.parts)

    @property
    def children(self) -> Mapping[str, DataConfig]:
        """Name → data config of each part."""
        return {part.name: part.data for part in self.parts}

    def part(self, name: str) -> DataConfig:
        """The data config of one part; its `make` gives batches of that part only.

        Raises:
          UserError: there is no part of this name.
        """
        if name not in self.children:
            raise UserError(f"Mixture: no part {name!r}; there are {', '.join(map(repr, self.children))}")
        return self.children[name]

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The texts of a split of all parts.

        Raises:
          UserError: a part has no running text.
        """
        for name, data in self.children.items():
            try:
                found = data.texts(split)
            except UserError as error:
                raise UserError(f"Mixture: part {name!r}: {error}") from None
            yield from found

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split of all parts.

        Raises:
          UserError: the batches of the parts differ in fields or shapes, or a part is too rare for LARGEST_BLOCK.
        """
        made = {name: data.make(request) for name, data in self.children.items()}
        for name, batches in made.items():
            if type(batches) is not Batches:
                raise UserError(f"Mixture: part {name!r} is a curriculum or augments images; make them of mixtures")
        names = list(made)
        dataset = MixedDataset(names, [batches.dataset for batches in made.values()])
        if not request.shuffle:
            return Batches(dataset, request.batch_size, request.seed, request.shuffle)
        counts = block_counts(names, self.shares(dataset.sizes))
        log.info(
            "mixture, %s: %s",
            request.split,
            ", ".join(
                f"{name} {100 * count / counts.sum():.2f} % ({size:,} sequences)"
                for name, count, size in zip(names, counts, dataset.sizes, strict=True)
            ),
        )
        order = functools.partial(
            mixed,
            counts=counts,
            orders=tuple(batches.order for batches in made.values()),
            first_rows=dataset.ends - dataset.sizes,
            seed=request.seed,
        )
        return Batches(dataset, request.batch_size, request.seed, request.shuffle, order)

    def shares(self, sizes: Int[np.ndarray, " parts"]) -> Float[np.ndarray, " parts"]:
        """Share of each part, given their numbers of examples; they sum to 1."""
        return shares_of(self.parts, sizes, self.temperature)

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new texts, as the first part makes them."""
        return self.parts[0].data.predict_batches(records, batch_size, tokenizer)

    def describe(self, dataset: Dataset, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints, as the first part defines it."""
        return self.parts[0].data.describe(dataset, outputs)


class MixedDataset:
    """The examples of all parts one after another; `gather` adds `part`.

    Raises:
      UserError: parts declare different fields; here or, if arrays differ in size, from `gather`.
    """

    def __init__(self, names: Sequence[str], parts: Sequence[Dataset]):
        self.names, self.parts = tuple(names), tuple(parts)
        self.sizes = np.array([len(dataset) for dataset in parts])
        self.ends = np.cumsum(self.sizes)
        self.padding = float(np.average([dataset.padding for dataset in parts], weights=self.sizes))
        specs = [dict(dataset.spec) for dataset in parts]
        for spec in specs:
            spec.pop("part", None)  # a mixture of mixtures has a `part` of its own
        for name, spec in zip(self.names, specs, strict=True):
            for field in sorted(spec.keys() | specs[0].keys()):
                if spec.get(field) != specs[0].get(field):
                    self._refuse(name, field, describe_field(specs[0].get(field)), describe_field(spec.get(field)))
        self.spec: BatchSpec = {**specs[0], "part": Field("int32", ("batch",), pad=-1)}

    @property
    def warnings(self) -> tuple[DataWarning, ...]:
        """The warnings of all parts, each with the name of its part."""
        return tuple(
            warning._replace(text=f"{name}: {warning.text}")
            for name, dataset in zip(self.names, self.parts, strict=True)
            for warning in dataset.warnings
        )

    def _refuse(self, name: str, field: str, first: str, other: str) -> None:
        raise UserError(f"Mixture: parts {self.names[0]!r} and {name!r} differ in {field!r}: {first} and {other}")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        part = np.searchsorted(self.ends, indices, side="right")
        batch: Batch = {}
        for p in np.unique(part):
            mine = np.flatnonzero(part == p)
            found = self.parts[p].gather(indices[mine] - (self.ends[p] - self.sizes[p]))
            for field in self.spec:
                if field == "part":
                    continue
                array = found[field]
                out = batch.setdefault(field, np.empty((len(indices), *array.shape[1:]), array.dtype))
                if out.shape[1:] != array.shape[1:]:
                    self._refuse(self.names[p], field, str(out.shape[1:]), str(array.shape[1:]))
                out[mine] = array
        return batch | {"part": part.astype(np.int32)}

    def training_tokens(self) -> tuple[Int[np.ndarray, " N"], int]:
        """The tokens of all parts, each once, and the size of their vocabulary."""
        found = [dataset.training_tokens() for dataset in self.parts if isinstance(dataset, TokenSource)]
        if len(found) < len(self.parts):
            raise UserError("Mixture: not all parts are token text, so that n-gram baselines cannot be fitted")
        return np.concatenate([tokens for tokens, _ in found]), found[0][1]


def block_counts(names: Sequence[str], shares: Float[np.ndarray, " parts"]) -> Int[np.ndarray, " parts"]:
    """Examples of each part in a block, by largest remainder: each within 1 of its share, and all sum to the block.

    Raises:
      UserError: a part has no example in the largest block.
    """
    block = BLOCK
    while shares.min() * block < FEWEST and block < LARGEST_BLOCK:
        block *= 2
    counts = np.floor(shares * block).astype(int)
    largest = np.argsort(-(shares * block - counts), kind="stable")
    counts[largest[: block - counts.sum()]] += 1
    for name, count, share in zip(names, counts, shares, strict=True):
        if not count:
            raise UserError(f"Mixture: part {name!r} has a share of {share:.1e}, not one example in {block:,}")
    return counts


def mixed(
    position: Int[np.ndarray, " B"],
    counts: Int[np.ndarray, " parts"],
    orders: tuple[Order, ...],
    first_rows: Int[np.ndarray, " parts"],
    seed: int,
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(index over all parts, epoch of the part) at these positions of the order of a mixture.

    The order is cut into blocks of Σ counts positions. Each block permutes its positions into slots, the first
    counts[0] of which belong to part 0, and so on. Slot i of part p in block b holds what is at position
    b · counts[p] + i of the order of that part. So after n blocks exactly the first n · counts[p] positions of part p
    were read.
    """
    block, within = np.divmod(position, counts.sum())
    slot = np.empty_like(position)
    for b in np.unique(block):
        slot[block == b] = permute(within[block == b], int(counts.sum()), seed, int(b))
    ends = np.cumsum(counts)
    part = np.searchsorted(ends, slot, side="right")
    own = block * counts[part] + slot - (ends - counts)[part]
    row, epoch = np.empty_like(position), np.empty_like(position)
    for p in np.unique(part):
        mine = part == p
        row[mine], epoch[mine] = orders[p](own[mine])
        row[mine] += first_rows[p]
    return row, epoch


@dataclasses.dataclass(frozen=True)
class Curriculum(DataConfig):
    """Batches of `short` before `switch_step` and of `long` from then on; each stage starts at its first batch.

    BERT trains on sequences of 128 tokens for 90 % of the steps, then on 512 (Devlin et al. 2019, A.2). If `short` or
    `long` is a curriculum itself there are more than two stages; the steps of the inner one count from its own start.
    Evaluation, prediction and the tokenizer are those of `long`.
    """

    short: Any
    """data config of the first stage"""
    long: Any
    """data config of the second stage"""
    switch_step: Count
    """the first step that reads `long`"""
    short_factor: Count = 1
    """sequences in a batch of `short`, as a multiple of the batch size: 4 if its sequences are a quarter as long"""

    def __post_init__(self):
        check_fields(self)
        if self.short.seq_len > self.long.seq_len:
            raise UserError(
                f"Curriculum: short.seq_len={self.short.seq_len} exceeds long.seq_len={self.long.seq_len}, for which"
                " the model is made"
            )

    @property
    def seq_len(self) -> int:
        """Tokens in the longest sequence."""
        return self.long.seq_len

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of all stages."""
        return self.long.tokenizer

    @property
    def num_types(self) -> int:
        """Most token types of any stage."""
        return max(self.short.num_types, self.long.num_types)

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The texts of `long`."""
        return self.long.texts(split)

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split: shuffled, those of both stages one after another; in order, those of `long` only.

        Raises:
          UserError: the batches of the stages differ in their fields.
        """
        long = self.long.make(request)
        if not request.shuffle:
            return long
        return StagedBatches(
            self.short.make(request._replace(batch_size=request.batch_size * self.short_factor)),
            long,
            self.switch_step,
        )

    def digests(self, tokenizer: Tokenizer, cache: Path) -> Mapping[str, str]:
        """Those of all stages."""
        return {**self.short.digests(tokenizer, cache), **self.long.digests(tokenizer, cache)}

    def predict_batches(self, records: Sequence[JsonObject], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new texts, as `long` makes them."""
        return self.long.predict_batches(records, batch_size, tokenizer)

    def describe(self, dataset: Dataset, outputs: dict[str, np.ndarray]) -> Iterator[JsonObject]:
        """What `predict` prints, as `long` defines it."""
        return self.long.describe(dataset, outputs)


class StagedBatches(Batches):
    """The batches of `first` before `switch_step`, then those of `then`; its dataset is that of `then`."""

    def __init__(self, first: Batches, then: Batches, switch_step: int):
        super().__init__(then.dataset, then.batch_size, then.seed, shuffle=True, order=then.order)
        self.first, self.then, self.switch_step = first, then, switch_step
        if differ := first.spec.keys() ^ then.spec.keys():
            raise UserError(f"Curriculum: only one of short and long has {', '.join(map(repr, sorted(differ)))}")
        for name, field in first.spec.items():
            if field.dtype != then.spec[name].dtype:
                types = f"{field.dtype} and {then.spec[name].dtype}"
                raise UserError(f"Curriculum: short and long differ in {name!r}: {types}")

    @functools.cached_property
    def spec(self) -> BatchSpec:
        return self.then.spec

    @property
    def steps_per_epoch(self) -> int:
        """Steps from the start until as much was read as the split contains, in both stages together."""
        short, long = self.first.steps_per_epoch, self.then.steps_per_epoch
        left = max(0, short - self.switch_step)  # steps that the epoch of `first` lacks at the switch
        return min(short, self.switch_step) + -(-left * long // short)

    def part(self, step: int, shards: Shards) -> Batch:
        stage, start = (self.first, 0) if step < self.switch_step else (self.then, self.switch_step)
        return stage.part(step - start, shards)
