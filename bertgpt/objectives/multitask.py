"""Training on several objectives at once, each with a name of its own.

`Multitask`: on the same data, with the same layers, such as a mixture of denoisers (UL2, Tay et al. 2023 §3.1).
`Tasks`: each on data of its own, with layers of its own on a shared encoder (MT-DNN, Liu et al. 2019 §3).

The arrays, metrics and predictions of an objective are called `<name>/<field>`; see `with_prefix`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import jax
from jaxtyping import Array, Key

from bertgpt.objectives.core import Objective, scaled
from bertgpt.ranges import Positive, Range, check_fields
from bertgpt.types import (
    Apply,
    Architecture,
    Batch,
    BatchSpec,
    DataConfig,
    Joint,
    Loss,
    ObjectiveConfig,
    Params,
    UserError,
    Vocab,
    prefixed,
)

T = TypeVar("T")
LossFunction = Callable[[Apply, Params, Batch, Key[Array, ""] | None], Loss]


def with_prefix(name: str, values: Mapping[str, T]) -> dict[str, T]:
    """Renames every key to `<name>/<key>`."""
    return {f"{name}/{key}": value for key, value in values.items()}


def without_prefix(name: str, values: Mapping[str, T]) -> dict[str, T]:
    """The entries whose key is `<name>/<key>`, renamed to `<key>`; the inverse of `with_prefix`."""
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


@dataclasses.dataclass(frozen=True)
class Named:
    """One objective of several."""

    name: str
    """prefix of its terms and metrics"""
    objective: ObjectiveConfig
    """its config, such as CausalLM"""
    weight: Positive = 1.0
    """factor on its loss"""
    share: Annotated[float, Range(0.0, 1.0, above=True)] = 1.0
    """fraction of each batch that it is trained on; 1: the whole batch, which all objectives share"""


@dataclasses.dataclass(frozen=True)
class Multitask(ObjectiveConfig):
    """The weighted sum of the mean losses of several objectives on one model.

    Either every share is 1 and all objectives see the whole batch, or the shares add up to 1 and split the batch.
    """

    parts: tuple[Named, ...]
    """the objectives"""

    def __post_init__(self):
        check_fields(self)
        check_parts("Multitask", self.parts)
        shares = [part.share for part in self.parts]
        if min(shares) < 1.0 and abs(sum(shares) - 1.0) > 1e-6:
            raise UserError(f"Multitask: shares {shares} must all be 1, or add up to 1")

    def rows(self, batch_size: int) -> list[slice]:
        """The examples of a batch that each objective is trained on.

        Raises:
          UserError: a share of the batch is not a whole number of examples.
        """
        if all(part.share == 1.0 for part in self.parts):
            return [slice(0, batch_size)] * len(self.parts)
        slices, start = [], 0
        for part in self.parts:
            count = round(part.share * batch_size)
            if abs(count - part.share * batch_size) > 1e-6 * batch_size:
                raise UserError(
                    f"Multitask: the share of {part.name!r}, {part.share} of batch_size={batch_size},"
                    " is not a whole number of examples"
                )
            slices.append(slice(start, start + count))
            start += count
        return slices

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those that every objective can train."""
        return shared_architectures(self.parts)

    @property
    def needs(self) -> BatchSpec:
        """Fields that any of the objectives reads."""
        return {name: field for part in self.parts for name, field in part.objective.needs.items()}

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise, as `<name>/<metric>`."""
        return prefixed_metrics(self.parts)

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; arrays and metrics of a part are called `<name>/<field>`."""
        made = {part.name: part.objective.make(vocab) for part in self.parts}

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            prepared: Batch = {}
            for number, (part, rows) in enumerate(zip(self.parts, self.rows(len(batch["input_ids"])), strict=True)):
                own = jax.tree.map(lambda x, rows=rows: x[rows], batch)
                ready = made[part.name].prepare(jax.random.fold_in(key, number), own)
                prepared |= with_prefix(part.name, ready)
            return prepared

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return made[self.parts[0].name].predict(apply, params, batch)

        def weighted(batch: Batch, rng: Key[Array, ""] | None) -> tuple[Named, ...]:
            return self.parts

        losses = {name: objective.loss for name, objective in made.items()}
        return Objective(prepare, sum_of_losses(weighted, losses), predict, joint=join(weighted, made))


def prefixed_metrics(parts: tuple[Named, ...]) -> frozenset[str]:
    """Names `<part>/<metric>` of the metrics that should rise."""
    names = (with_prefix(part.name, dict.fromkeys(part.objective.higher_is_better)) for part in parts)
    return frozenset().union(*names)


def weighted_sum(
    parts: Sequence[Named], loss_of: Callable[[str, Key[Array, ""] | None], Loss], rng: Key[Array, ""] | None
) -> Loss:
    """The losses of several objectives with their weights, named `<name>/<term>`; each has a key of its own."""
    total = Loss({}, {})
    for number, part in enumerate(parts):
        value = loss_of(part.name, None if rng is None else jax.random.fold_in(rng, number))
        terms = {name: scaled(term, part.weight) for name, term in value.terms.items()}
        total.terms.update(with_prefix(part.name, terms))
        total.metrics.update(with_prefix(part.name, value.metrics))
    return total


def sum_of_losses(
    weighted: Callable[[Batch, Key[Array, ""] | None], Sequence[Named]], losses: Mapping[str, LossFunction]
) -> LossFunction:
    """The weighted sum of the losses of several objectives, each of which reads the arrays with its prefix.

    Args:
      weighted: (batch, key) → the objectives with their weights for it.
      losses: the loss of each.
    """

    def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
        def loss_of(name: str, key: Key[Array, ""] | None) -> Loss:
            return losses[name](apply, params, without_prefix(name, batch), key)

        return weighted_sum(weighted(batch, rng), loss_of, rng)

    return loss


def join(
    weighted: Callable[[Batch, Key[Array, ""] | None], Sequence[Named]], made: Mapping[str, Objective]
) -> Joint | None:
    """The `Joint` of several objectives; None if none of them has one. The arguments are those of `sum_of_losses`."""
    joints = {name: objective.joint for name, objective in made.items() if objective.joint is not None}
    if not joints:
        return None

    def features(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for number, name in enumerate(made):
            if name in joints:
                key = None if rng is None else jax.random.fold_in(rng, number)
                own = joints[name].features(apply, params, without_prefix(name, batch), key)
                found |= with_prefix(name, own)
        return found

    def loss(features: dict[str, Array], batch: Batch, rng: Key[Array, ""] | None) -> Loss:
        def loss_of(name: str, key: Key[Array, ""] | None) -> Loss:
            if name not in joints:
                return Loss({}, {})
            return joints[name].loss(without_prefix(name, features), without_prefix(name, batch), key)

        return weighted_sum(weighted(batch, rng), loss_of, rng)

    rest = {name: joints[name].rest if name in joints else objective.loss for name, objective in made.items()}
    return Joint(features, loss, sum_of_losses(weighted, rest))


# -- tasks ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OfTask(ObjectiveConfig):
    """An objective that uses the layers of one task instead of the default layers of the model."""

    task: str
    """name of the task"""
    objective: ObjectiveConfig
    """its config, such as Classify"""

    def infer(self, data: DataConfig) -> "OfTask":
        """With the fields of its objective inferred from the data."""
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

        joint = made.joint and made.joint._replace(
            features=lambda apply, *others: made.joint.features(of_task(apply), *others),
            rest=lambda apply, *others: made.joint.rest(of_task(apply), *others),
        )
        return Objective(made.prepare, loss, predict, made.targets, made.target_metric, joint)


@dataclasses.dataclass(frozen=True)
class Tasks(ObjectiveConfig):
    """The weighted sum of the mean losses of several tasks, each on the part of the data with its name.

    In training the weight of each task is multiplied by its share of the examples and by the number of tasks. The
    expected gradient is then that of steps on a single task each, sampled with these shares (MT-DNN algorithm 1; Raffel
    et al. 2020 §3.5.2). In evaluation, and where all tasks have the same number of examples, all count equally.
    """

    parts: tuple[Named, ...]
    """the objectives, with the names of the parts of the data"""

    def __post_init__(self):
        check_fields(self)
        check_parts("Tasks", self.parts)
        for part in self.parts:
            if part.share != 1.0:
                raise UserError(
                    f"Tasks: the share of {part.name!r} is {part.share}; the data determines the shares of tasks"
                )

    def infer(self, data: DataConfig) -> "Tasks":
        """With the fields of each objective inferred from the part of the data with its name.

        Raises:
          UserError: the parts of the data have other names.
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
        """The objective of one task, for data of that task alone."""
        return OfTask(name, next(part.objective for part in self.parts if part.name == name))

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those that every objective can train."""
        return shared_architectures(self.parts)

    @property
    def needs(self) -> BatchSpec:
        """Fields of each part, as `<name>/<field>`."""
        return {name: field for part in self.parts for name, field in prefixed(part.objective.needs, part.name).items()}

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Metrics that should rise, as `<name>/<metric>`."""
        return prefixed_metrics(self.parts)

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective; arrays, metrics and predictions of a part are called `<name>/<field>`."""
        made = {part.name: self.part(part.name).make(vocab) for part in self.parts}

        def prepare(key: Key[Array, ""], batch: Batch) -> Batch:
            prepared: Batch = {}
            for number, name in enumerate(made):
                ready = made[name].prepare(jax.random.fold_in(key, number), without_prefix(name, batch))
                prepared |= with_prefix(name, ready)
            return prepared

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            predictions: dict[str, Array] = {}
            for name, objective in made.items():
                predictions |= with_prefix(name, objective.predict(apply, params, without_prefix(name, batch)))
            return predictions

        def weighted(batch: Batch, rng: Key[Array, ""] | None) -> tuple[Named, ...]:
            return self.parts if rng is None else weight_by_share(self.parts, batch)

        losses = {name: objective.loss for name, objective in made.items()}
        return Objective(prepare, sum_of_losses(weighted, losses), predict, joint=join(weighted, made))


def weight_by_share(parts: tuple[Named, ...], batch: Batch) -> tuple[Named, ...]:
    """The parts, with each weight multiplied by the part's share of the examples and by the number of parts."""
    counts = [len(next(iter(without_prefix(part.name, batch).values()))) for part in parts]
    factors = [count * len(counts) / sum(counts) for count in counts]
    return tuple(dataclasses.replace(p, weight=p.weight * factor) for p, factor in zip(parts, factors, strict=True))


def shared_architectures(parts: tuple[Named, ...]) -> tuple[Architecture, ...]:
    """The architectures that every objective can train."""
    first, *others = (part.objective.architectures for part in parts)
    return tuple(name for name in first if all(name in other for other in others))


def check_parts(user: str, parts: tuple[Named, ...]) -> None:
    """Raises UserError unless the names are valid and different and the weights positive."""
    names = [part.name for part in parts]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{user}: parts must have different names, not {names}")
    for part in parts:
        if "/" in part.name or not part.name:
            raise UserError(f"{user}: name {part.name!r} must not be empty or contain '/'")
        if not part.weight > 0.0:
            raise UserError(f"{user}: the weight of {part.name!r} is {part.weight}; it must be positive")
        check_fields(part)
