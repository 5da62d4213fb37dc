"""Several tasks in every batch, for one shared encoder: data of multi-task fine-tuning."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.loader import Batches, Shards
from bertgpt.data.mixture import Part, check_parts, shares_of
from bertgpt.ranges import Count, Positive, check_fields
from bertgpt.types import (
    Batch,
    BatchSpec,
    DataConfig,
    DataRequest,
    Dataset,
    DataWarning,
    EvalResult,
    Split,
    Task,
    UserError,
    prefixed,
)


@dataclasses.dataclass(frozen=True)
class TaskMixture(Task):
    """The data of several tasks. Each batch contains a fixed number of examples per task, in fields “<name>/<field>”.

    So one program trains all tasks, whatever their fields and sequence lengths, and each task has a share in every
    step. In evaluation the numbers are proportional to the sizes of the split instead, so that all tasks end together.
    """

    parts: tuple[Part, ...]
    """the tasks: name, data config and weight, its share of the examples of a batch relative to the other parts' (None,
    for all parts: the number of examples of the train split)"""
    temperature: Positive = 1.0
    """without weights, a part's share is its number of examples to the power 1 / temperature: 1 proportional, large
    equal (Raffel et al. 2020 §3.5.2)"""
    multiple: Count = 1
    """the number of examples per task is a multiple of this: of devices that split the batch × microbatches"""
    tokenizer: Any = None
    """a tokenizer to train on the texts of all parts, or the path of one or of a run; None: init_from's. The tokenizers
    of the parts are not used"""

    def __post_init__(self):
        check_parts("TaskMixture", self.parts, self.temperature)
        check_fields(self)
        for part in self.parts:
            if not part.name.isidentifier():
                raise UserError(f"TaskMixture: name {part.name!r} must be letters, digits and '_'")

    @property
    def seq_len(self) -> int:
        """Tokens in the longest sequence."""
        return max(part.data.seq_len for part in self.parts)

    @property
    def num_types(self) -> int:
        """Most token types of any task."""
        return max(part.data.num_types for part in self.parts)

    @property
    def children(self) -> Mapping[str, DataConfig]:
        """Name → data config of each task."""
        return {part.name: part.data for part in self.parts}

    def part(self, name: str) -> DataConfig:
        """The data config of one task.

        Raises:
          UserError: there is no task of this name.
        """
        if name not in self.children:
            raise UserError(f"no task {name!r}; there are {', '.join(map(repr, self.children))}")
        return self.children[name]

    def infer(self, train: DataConfig | None = None) -> "TaskMixture":
        """Fills in the labels of each task; those of the same task in `train` count if it is given."""
        known = {} if train is None else train.children
        for name in self.children if train is not None else ():
            if name not in known:
                raise UserError(f"evals: training has no task {name!r}; it has {', '.join(map(repr, known))}")
        parts = (dataclasses.replace(part, data=part.data.infer(known.get(part.name))) for part in self.parts)
        return dataclasses.replace(self, parts=tuple(parts))

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The texts of a split of all tasks, to train a tokenizer on."""
        for part in self.parts:
            yield from part.data.texts(split)

    def examples(self, split: Split) -> Sequence[Any]:
        """The examples of all scored tasks, one task after another."""
        return [
            example for data in self.children.values() if isinstance(data, Task) for example in data.examples(split)
        ]

    def make(self, request: DataRequest) -> "TaskBatches":
        """Batches of one split of all tasks; `batch_size` counts the examples of all tasks together.

        Raises:
          UserError: it is not divisible by `multiple`, or too small for one example of each task.
        """
        if request.batch_size % self.multiple:
            raise UserError(
                f"TaskMixture: batch_size={request.batch_size} is not divisible by multiple={self.multiple}"
            )
        made = {part.name: part.data.make(request._replace(batch_size=1)) for part in self.parts}
        sizes = np.array([len(batches.dataset) for batches in made.values()])
        shares = self.shares(sizes) if request.shuffle else sizes / sizes.sum()
        counts = examples_per_task(shares, request.batch_size // self.multiple) * self.multiple
        for batches, count in zip(made.values(), counts, strict=True):
            batches.batch_size = int(count)
        return TaskBatches(made, request.seed, request.shuffle)

    def shares(self, sizes: Int[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        """Share of each task, given their numbers of examples; they sum to 1."""
        return shares_of(self.parts, sizes, self.temperature)

    @property
    def scores_outputs(self) -> bool:
        """Whether any task scores outputs."""
        return any(isinstance(data, Task) and data.scores_outputs for data in self.children.values())

    def evaluate(self, dataset: "TaskDataset", outputs: Mapping[str, np.ndarray]) -> EvalResult:
        """The scores of each task, under its name."""
        found = []
        for name, data in self.children.items():
            if isinstance(data, Task) and data.scores_outputs:
                own, start = dataset.children[name], f"{name}/"
                values = {k.removeprefix(start): x[: len(own)] for k, x in outputs.items() if k.startswith(start)}
                found.append((name, data.evaluate(own, values)))
        return EvalResult(
            tuple(m._replace(name=f"{name}/{m.name}") for name, result in found for m in result.metrics),
            tuple(table._replace(title=f"{name}: {table.title}") for name, result in found for table in result.tables),
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Records can only be predicted for one task.

        Raises:
          UserError: always; it names the tasks.
        """
        raise UserError(f"this run has several tasks: name one of {', '.join(self.children)} with --task_name")


class TaskDataset:
    """The datasets of several tasks; its length is that of all together."""

    def __init__(self, children: Mapping[str, Dataset], warnings: tuple[DataWarning, ...] = ()):
        self.children = dict(children)
        sizes = [len(x) for x in children.values()]
        self.padding = float(np.average([x.padding for x in children.values()], weights=sizes))
        self.spec: BatchSpec = {k: v for name, x in children.items() for k, v in prefixed(x.spec, name).items()}
        own = (w._replace(text=f"{name}: {w.text}") for name, x in children.items() for w in x.warnings)
        self.warnings = (*warnings, *own)

    def __len__(self) -> int:
        return sum(map(len, self.children.values()))

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Not supported: examples of different tasks have different fields; `TaskBatches` gathers those of each."""
        raise NotImplementedError("examples of different tasks do not stack; TaskBatches gathers those of each")


class TaskBatches(Batches):
    """At each step the batches of all tasks at that step; a task that is exhausted continues with padding."""

    def __init__(self, parts: Mapping[str, Batches], seed: int, shuffle: bool):
        counts = ", ".join(f"{name} {batches.batch_size}" for name, batches in parts.items())
        total = sum(batches.batch_size for batches in parts.values())
        composition = DataWarning("part", total, f"examples in a batch: {counts}")
        dataset = TaskDataset({name: batches.dataset for name, batches in parts.items()}, (composition,))
        super().__init__(dataset, total, seed, shuffle)
        self.parts = dict(parts)

    @functools.cached_property
    def spec(self) -> BatchSpec:
        """The fields of a batch."""
        return {k: v for name, batches in self.parts.items() for k, v in prefixed(batches.spec, name).items()}

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every task is exhausted."""
        return max(batches.steps_per_epoch for batches in self.parts.values())

    def part(self, step: int, shards: Shards) -> Batch:
        found = {name: batches.part(step, shards) for name, batches in self.parts.items()}
        return {f"{name}/{key}": array for name, batch in found.items() for key, array in batch.items()}


def examples_per_task(shares: Float[np.ndarray, " P"] | Sequence[float], batch_size: int) -> Int[np.ndarray, " P"]:
    """Number of examples of each task in a batch: near its share, at least 1, and `batch_size` together.

    Raises:
      UserError: there are more tasks than examples.
    """
    wanted = np.asarray(shares, float) * batch_size
    if batch_size < len(wanted):
        raise UserError(f"TaskMixture: {len(wanted)} tasks do not fit a batch with room for {batch_size} of them")
    counts = np.maximum(np.floor(wanted).astype(int), 1)
    while counts.sum() < batch_size:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > batch_size:  # small tasks were rounded up to one example
        counts[np.argmax(np.where(counts > 1, counts - wanted, -np.inf))] -= 1
    return counts
