"""Several objectives at once, each under a name of its own.

`Multitask`: on the same rows, with the same layers, such as a mixture of denoisers (UL2, Tay et al. 2023 §3.1).
`Tasks`: on rows of their own, with layers of their own on one encoder (MT-DNN, Liu et al. 2019 §3).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Key

from bertgpt.objectives.core import Objective, scaled
from bertgpt.types import (
    Apply,
    Architecture,
    Batch,
    BatchSpec,
    DataConfig,
    Loss,
    ObjectiveConfig,
    Params,
    UserError,
    Vocab,
    prefixed,
)


@dataclasses.dataclass(frozen=True)
class Named:
    """One objective of several."""

    name: str
    """prefix of its terms and metrics"""
    objective: Any
    """a config such as CausalLM"""
    weight: float = 1.0
    """factor on its loss"""
    share: float = 1.0
    """fraction of each batch's rows that it learns from; 1: all of them, beside the others"""


@dataclasses.dataclass(frozen=True)
class Multitask(ObjectiveConfig):
    """The weighted sum of the losses of several objectives on one model, each a mean over what it asks for.

    Either every share is 1 and all see all rows, or the shares add up to 1 and each has rows of its own.
    """

    parts: tuple[Named, ...]
    """the objectives"""

    def __post_init__(self):
        check_parts("Multitask", self.parts)
        for part in self.parts:
            if not 0.0 < part.share <= 1.0:
                raise UserError(f"Multitask: the share of {part.name!r} is {part.share}; it must lie in (0, 1]")
        shares = [part.share for part in self.parts]
        if min(shares) < 1.0 and abs(sum(shares) - 1.0) > 1e-6:
            raise UserError(f"Multitask: shares {shares} must all be 1, or add up to 1")

    def rows(self, batch_size: int) -> list[slice]:
        """The rows of a batch that each part learns from.

        Raises:
          UserError: a share of the batch is no whole number of rows.
        """
        if all(part.share == 1.0 for part in self.parts):
            return [slice(0, batch_size)] * len(self.parts)
        slices, start = [], 0
        for part in self.parts:
            count = round(part.share * batch_size)
            if abs(count - part.share * batch_size) > 1e-6 * batch_size:
                raise UserError(
                    f"Multitask: the share of {part.name!r}, {part.share} of batch_size={batch_size},"
                    " is no whole number of rows"
                )
            slices.append(slice(start, start + count))
            start += count
        return slices

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those that every part can train."""
        return shared_architectures(self.parts)

    @property
    def needs(self) -> BatchSpec:
        """Fields that any part reads."""
        return {name: field for part in self.parts for name, field in part.objective.needs.items()}

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise, as `<name>/<metric>`."""
        return frozenset(f"{part.name}/{metric}" for part in self.parts for metric in part.objective.higher_is_better)

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; a part's arrays and numbers stand under `<name>/`."""
        made = {part.name: part.objective.make(vocab) for part in self.parts}

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            prepared: Batch = {}
            for number, (part, rows) in enumerate(zip(self.parts, self.rows(len(batch["input_ids"])), strict=True)):
                own = jax.tree.map(lambda x, rows=rows: x[rows], batch)
                ready = made[part.name].prepare(jax.random.fold_in(key, number), own)
                prepared |= {f"{part.name}/{name}": array for name, array in ready.items()}
            return prepared

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return made[self.parts[0].name].predict(apply, params, batch)

        return Objective(prepare, sum_of_losses(self.parts, made), predict)


def sum_of_losses(parts: tuple[Named, ...], made: Mapping[str, Objective]) -> Callable[..., Loss]:
    """The loss of several objectives, each of which reads the arrays under its name."""

    def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
        total = Loss({}, {})
        for number, part in enumerate(parts):
            key = None if rng is None else jax.random.fold_in(rng, number)
            value = made[part.name].loss(apply, params, under(part.name, batch), key)
            named = {f"{part.name}/{name}": scaled(term, part.weight) for name, term in value.terms.items()}
            total.terms.update(named)
            total.metrics.update({f"{part.name}/{name}": metric for name, metric in value.metrics.items()})
        return total

    return loss


def under(name: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under `<name>/`, without that prefix."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}


# -- tasks ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OfTask(ObjectiveConfig):
    """An objective with layers of the model that are one task's own, in place of the default ones."""

    task: str
    """name of the task"""
    objective: Any
    """a config such as Classify"""

    def infer(self, data: DataConfig) -> "OfTask":
        """With what its objective takes from the data."""
        return dataclasses.replace(self, objective=self.objective.infer(data))

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those of its objective."""
        return self.objective.architectures

    @property
    def needs(self) -> BatchSpec:
        """Fields that its objective reads."""
        return self.objective.needs

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Those of its objective."""
        return self.objective.higher_is_better

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        made = self.objective.make(vocab)

        def of_task(apply: Apply) -> Apply:
            return functools.partial(apply, task=self.task)

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            return made.loss(of_task(apply), params, batch, rng)

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return made.predict(of_task(apply), params, batch)

        return Objective(made.prepare, loss, predict, made.targets, made.target_metric)


@dataclasses.dataclass(frozen=True)
class Tasks(ObjectiveConfig):
    """The weighted sum of the mean losses of several tasks, each on the rows that data has under its name.

    In training each also counts by its share of the rows, times the number of tasks: the expected gradient is that of
    updates on one task each, drawn with these shares (MT-DNN algorithm 1; Raffel et al. 2020 §3.5.2). With as many rows
    of each task, and in evaluation, every task counts alike.
    """

    parts: tuple[Named, ...]
    """the objectives, under the names of the data's parts"""

    def __post_init__(self):
        check_parts("Tasks", self.parts)
        for part in self.parts:
            if part.share != 1.0:
                raise UserError(f"Tasks: the share of {part.name!r} is {part.share}; rows are shared out by the data")

    def infer(self, data: DataConfig) -> "Tasks":
        """With what each objective takes from the part of the data that has its name.

        Raises:
          UserError: the data has other parts.
        """
        here, there = [part.name for part in self.parts], list(data.children)
        if sorted(here) != sorted(there):
            raise UserError(f"Tasks: the objectives {here} must have the names of the data's parts, which are {there}")
        return Tasks(
            tuple(
                dataclasses.replace(part, objective=part.objective.infer(data.children[part.name]))
                for part in self.parts
            )
        )

    def part(self, name: str) -> OfTask:
        """The objective of one task alone, on rows of that task alone."""
        return OfTask(name, next(part.objective for part in self.parts if part.name == name))

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those that every part can train."""
        return shared_architectures(self.parts)

    @property
    def needs(self) -> BatchSpec:
        """Fields of each part, as `<name>/<field>`."""
        return {name: field for part in self.parts for name, field in prefixed(part.objective.needs, part.name).items()}

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise, as `<name>/<metric>`."""
        return frozenset(f"{part.name}/{metric}" for part in self.parts for metric in part.objective.higher_is_better)

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; a part's arrays, numbers and answers stand under `<name>/`."""
        made = {part.name: self.part(part.name).make(vocab) for part in self.parts}

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            prepared: Batch = {}
            for number, name in enumerate(made):
                ready = made[name].prepare(jax.random.fold_in(key, number), under(name, batch))
                prepared |= {f"{name}/{array}": value for array, value in ready.items()}
            return prepared

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            found = {name: objective.predict(apply, params, under(name, batch)) for name, objective in made.items()}
            return {f"{name}/{key}": value for name, answer in found.items() for key, value in answer.items()}

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            parts = self.parts if rng is None else by_rows(self.parts, batch)
            return sum_of_losses(parts, made)(apply, params, batch, rng)

        return Objective(prepare, loss, predict)


def by_rows(parts: tuple[Named, ...], batch: Batch) -> tuple[Named, ...]:
    """The parts with weights times their shares of a batch's rows times their number."""
    rows = [len(next(iter(under(part.name, batch).values()))) for part in parts]
    factors = [count * len(rows) / sum(rows) for count in rows]
    return tuple(dataclasses.replace(p, weight=p.weight * factor) for p, factor in zip(parts, factors, strict=True))


def shared_architectures(parts: tuple[Named, ...]) -> tuple[Architecture, ...]:
    """The architectures that every part can train."""
    first, *others = (part.objective.architectures for part in parts)
    return tuple(name for name in first if all(name in other for other in others))


def check_parts(user: str, parts: tuple[Named, ...]) -> None:
    """Raises UserError unless names are different and usable and weights positive."""
    names = [part.name for part in parts]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{user}: parts must have different names, not {names}")
    for part in parts:
        if "/" in part.name or not part.name:
            raise UserError(f"{user}: name {part.name!r} must not be empty or contain '/'")
        if not part.weight > 0.0:
            raise UserError(f"{user}: the weight of {part.name!r} is {part.weight}; it must be positive")
