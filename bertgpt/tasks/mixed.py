"""Several tasks in every batch, for one encoder that they share: data of multi-task fine-tuning."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bertgpt.data.loader import Batches
from bertgpt.data.mixture import Part, check_parts, shares_of
from bertgpt.data.sources.text import Split
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import DataRequest, EvalResult, UserError


@dataclasses.dataclass(frozen=True)
class TaskMixture:
    """Data parts of several tasks. A batch holds rows of each, always as many, with arrays under “<name>/”.

    So one program trains all tasks, whatever their arrays and lengths of rows, and each has a part in every update. In
    evaluation the rows of a batch are shared out by the sizes of the split instead, so that the parts end together.
    """

    parts: tuple[Part, ...]
    """the tasks: name, data part and weight, its share of the rows of a batch relative to the other parts' (None, for
    all parts alike: by the number of rows of the train split)"""
    temperature: float = 1.0
    """without weights, a part's share is its number of rows to the power 1 / temperature: 1 proportional, large equal
    (Raffel et al. 2020 §3.5.2)"""
    multiple: int = 1
    """rows of each part are a multiple of this: of data × fsdp devices × microbatches"""
    tokenizer: Any = None
    """path of a tokenizer or of a run; None: init_from's. The parts' own do not count"""

    def __post_init__(self):
        check_parts("TaskMixture", self.parts, self.temperature)
        for part in self.parts:
            if not part.name.isidentifier():
                raise UserError(f"TaskMixture: name {part.name!r} must be letters, digits and '_'")
        if self.multiple < 1:
            raise UserError(f"TaskMixture: multiple={self.multiple} must be at least 1")

    @property
    def seq_len(self) -> int:
        """Tokens in the longest row."""
        return max(part.data.seq_len for part in self.parts)

    def part(self, name: str) -> Any:
        """The data part of one task.

        Raises:
          UserError: there is none of this name.
        """
        for part in self.parts:
            if part.name == name:
                return part.data
        raise UserError(f"no task {name!r}; there are {', '.join(repr(part.name) for part in self.parts)}")

    def infer(self, train: Any = None) -> "TaskMixture":
        """With the labels of each task."""
        settled = []
        for part in self.parts:
            there = None if train is None else train.part(part.name)
            data = part.data.infer(there) if hasattr(part.data, "infer") else part.data
            settled.append(dataclasses.replace(part, data=data))
        return dataclasses.replace(self, parts=tuple(settled))

    def train_tokenizer(self) -> Tokenizer:
        """Trains a tokenizer on the training texts of all parts."""
        return self.tokenizer.make(lambda: (text for part in self.parts for text in part.data.texts("train")))

    def make(self, request: DataRequest) -> "TaskBatches":
        """Batches of one split of all tasks; `batch_size` counts the rows of all together.

        Raises:
          UserError: it is no multiple of `multiple`, or too little for a row of each task.
        """
        if request.batch_size % self.multiple:
            raise UserError(
                f"TaskMixture: batch_size={request.batch_size} is not divisible by multiple={self.multiple}"
            )
        made = {part.name: part.data.make(request._replace(batch_size=1)) for part in self.parts}
        sizes = np.array([len(batches.dataset) for batches in made.values()])
        shares = self.shares(sizes) if request.shuffle else sizes / sizes.sum()
        counts = rows_of_parts(shares, request.batch_size // self.multiple) * self.multiple
        for batches, count in zip(made.values(), counts, strict=True):
            batches.batch_size = int(count)
        return TaskBatches(made, request.seed, request.shuffle)

    def shares(self, sizes: Int[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        """Share of each part, given their numbers of rows; they sum to 1."""
        return shares_of(self.parts, sizes, self.temperature)

    def evaluate(self, split: Split, rows: "TaskDataset", outputs: Mapping[str, np.ndarray]) -> EvalResult:
        """What each task says of its answers, under its name."""
        metrics, tables = [], []
        for part in self.parts:
            if not hasattr(part.data, "evaluate"):
                continue
            own, start = rows.parts[part.name], f"{part.name}/"
            answers = {k.removeprefix(start): x[: len(own)] for k, x in outputs.items() if k.startswith(start)}
            found = part.data.evaluate(split, own, answers)
            metrics += [metric._replace(name=f"{part.name}/{metric.name}") for metric in found.metrics]
            tables += [table._replace(title=f"{part.name}: {table.title}") for table in found.tables]
        return EvalResult(tuple(metrics), tuple(tables))

    @property
    def inputs(self) -> tuple[str, ...]:
        """There is nothing to predict but for one task.

        Raises:
          UserError: always; it names the tasks.
        """
        names = ", ".join(part.name for part in self.parts)
        raise UserError(f"this run has several tasks: name one of {names} with --task_name")


class TaskDataset:
    """The rows of several tasks; their number is that of all together."""

    def __init__(self, parts: Mapping[str, Any], notes: tuple[str, ...] = ()):
        self.parts = dict(parts)
        self.padding = float(np.average([x.padding for x in parts.values()], weights=[len(x) for x in parts.values()]))
        own = (f"{name}: {note}" for name, rows in parts.items() for note in getattr(rows, "notes", ()))
        self.notes = (*notes, *own)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def gather(self, rows: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        raise NotImplementedError("rows of different tasks do not stack; TaskBatches gathers those of each")


class TaskBatches(Batches):
    """At each step the batches of all tasks at that step; one that is through goes on with rows that only fill up."""

    def __init__(self, parts: Mapping[str, Batches], seed: int, shuffle: bool):
        counts = ", ".join(f"{name} {batches.batch_size}" for name, batches in parts.items())
        rows = TaskDataset({name: batches.dataset for name, batches in parts.items()}, (f"rows in a batch: {counts}",))
        super().__init__(rows, sum(batches.batch_size for batches in parts.values()), seed, shuffle)
        self.parts = dict(parts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until the slowest part is through."""
        return max(batches.steps_per_epoch for batches in self.parts.values())

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        found = {name: batches[step] for name, batches in self.parts.items()}
        return {f"{name}/{key}": array for name, batch in found.items() for key, array in batch.items()}


def rows_of_parts(shares: Float[np.ndarray, " P"] | Sequence[float], batch_size: int) -> Int[np.ndarray, " P"]:
    """Rows of each part in a batch: near its share of them, at least 1, and together `batch_size`.

    Raises:
      UserError: there are more parts than rows.
    """
    wanted = np.asarray(shares, float) * batch_size
    if batch_size < len(wanted):
        raise UserError(f"TaskMixture: {len(wanted)} tasks do not fit a batch with room for {batch_size} of them")
    counts = np.maximum(np.floor(wanted).astype(int), 1)
    while counts.sum() < batch_size:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > batch_size:  # parts that got the one row that they need not have
        counts[np.argmax(np.where(counts > 1, counts - wanted, -np.inf))] -= 1
    return counts
