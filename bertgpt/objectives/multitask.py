"""Several objectives at once, each under a name of its own: mixtures of denoisers (UL2, Tay et al. 2023 §3.1)."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Key

from bertgpt.config import UserError, Vocab
from bertgpt.objectives.core import Apply, Batch, Loss, Objective, Params, scaled


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
class Multitask:
    """The weighted sum of the losses of several objectives on one model, each a mean over what it asks for.

    Either every share is 1 and all see all rows, or the shares add up to 1 and each has rows of its own.
    """

    parts: tuple[Named, ...]
    """the objectives"""

    def __post_init__(self):
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise UserError(f"Multitask: parts must have different names, not {names}")
        for part in self.parts:
            if "/" in part.name or not part.name:
                raise UserError(f"Multitask: name {part.name!r} must not be empty or contain '/'")
            if not part.weight > 0.0:
                raise UserError(f"Multitask: the weight of {part.name!r} is {part.weight}; it must be positive")
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

        def loss(apply: Apply, params: Params, batch: Batch, rng: Key[Array, ""] | None) -> Loss:
            total = Loss({}, {})
            for number, part in enumerate(self.parts):
                prefix = f"{part.name}/"
                own = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
                key = None if rng is None else jax.random.fold_in(rng, number)
                value = made[part.name].loss(apply, params, own, key)
                total.terms.update({prefix + name: scaled(term, part.weight) for name, term in value.terms.items()})
                total.metrics.update({prefix + name: metric for name, metric in value.metrics.items()})
            return total

        def predict(apply: Apply, params: Params, batch: Batch) -> dict[str, Array]:
            return made[self.parts[0].name].predict(apply, params, batch)

        return Objective(prepare, loss, predict)
