"""Parameters, FLOPs and memory of an experiment, from shapes alone: nothing is allocated and no data is read."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bertgpt.adaptation.freezing import separate
from bertgpt.config import Experiment, Mesh
from bertgpt.inference.model import build_apply
from bertgpt.models.apply import ModelModule
from bertgpt.sharding import make_mesh
from bertgpt.training.memory import size_in_bytes
from bertgpt.training.state import init_state
from bertgpt.training.step import step_flops
from bertgpt.types import (
    IMAGE_SPEC,
    TEXT_SPEC,
    Batch,
    BatchSpec,
    Field,
    JsonObject,
    Objective,
    ObjectiveConfig,
    Params,
    UserError,
    Vocab,
)

SENTINELS = 100


class Estimate(NamedTuple):
    """What an experiment needs."""

    parameters: dict[str, int]
    """component of the model, such as "embedder" → number of parameters"""
    trained: int
    """parameters that the optimiser updates"""
    flops: int
    """of matrix products in one step, forward and backward, for sequences of the longest length"""
    bytes: dict[str, int]
    """parameters, gradients, optimiser state → bytes over all devices. Activations are not among them: they grow with
    the sequences of a microbatch, and `remat` trades them for FLOPs"""

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(self.parameters.values())


def estimate(experiment: Experiment, batch: Mapping[str, object] | None = None) -> Estimate:
    """Counts what an experiment needs, by abstract evaluation.

    Args:
      experiment: with a model, and with labels if its objective needs their number (see `config.infer`).
      batch: a batch of its data, whose shapes are taken. None: the fields that the objective declares, in the sizes
        that the config gives.

    Returns:
      See `Estimate`.

    Raises:
      UserError: the objective reads fields whose shapes only the data knows, or does not fit the model.
    """
    module, objective, tx, _ = parts_of(experiment)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    whole = abstract_batch(spec_of(experiment), experiment) if batch is None else shapes(batch)

    def state_of(batch: Batch) -> object:
        return init_state(
            module, objective, tx, batch, mesh, experiment.seed, experiment.trainable, experiment.lora
        )[0]  # fmt: skip

    with missing_fields():
        state = jax.eval_shape(state_of, whole)
    apply = build_apply(module, experiment.lora)
    flops = step_flops(experiment, objective, apply, state.params, whole)
    trained = separate(state.params, experiment.trainable)[0]
    sizes = {
        "parameters": size_in_bytes(state.params),
        "gradients": size_in_bytes(trained),
        "optimiser state": size_in_bytes(state.opt),
    }
    return Estimate({name: count(tree) for name, tree in state.params.items()}, count(trained), flops, sizes)


class Parts(NamedTuple):
    """What a training step is made of."""

    module: ModelModule
    objective: Objective
    tx: optax.GradientTransformation
    schedule: optax.Schedule


def parts_of(experiment: Experiment) -> Parts:
    """The parts of an experiment's step, for any vocabulary and number of steps: shapes do not depend on them."""
    return Parts(
        experiment.model.make(experiment.compute_dtype),
        experiment.objective.make(assumed_vocab(experiment.model.vocab_size)),
        *experiment.optim.make(experiment.steps or 1),
    )


@contextlib.contextmanager
def missing_fields() -> Iterator[None]:
    """Raises UserError if the block asks for a field of a batch that only the data has."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"only the data knows the shape of the field {error.args[0]!r}") from None


def assumed_vocab(size: int) -> Vocab:
    """A vocabulary with every special token; costs do not depend on which ids they have."""
    return Vocab(size, 0, 1, 2, 3, 4, 5, 6, sentinels=tuple(range(max(7, size - SENTINELS), size)))


def spec_of(experiment: Experiment) -> BatchSpec:
    """Fields of a batch: those of every text, and those that the objective declares."""
    # Fields that no objective at hand reads cost nothing: labels of sentence pairs and of whole texts are always there.
    rows = {name: Field("int32", ("batch",)) for name in ("row", "epoch", "pair_label", "label")}
    declared = experiment.objective.needs if isinstance(experiment.objective, ObjectiveConfig) else {}
    images = {} if experiment.model.image_shape is None else IMAGE_SPEC
    return {**TEXT_SPEC, **rows, **images, **declared}


def shapes(batch: Mapping[str, object]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of a batch."""
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}


def abstract_batch(spec: BatchSpec, experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the sizes that the config gives, without values.

    Raises:
      UserError: a field has an axis of unknown size.
    """
    sizes = {"batch": experiment.batch_size, "sequence": experiment.data.seq_len}
    if (shape := experiment.model.image_shape) is not None:
        sizes |= dict(zip(IMAGE_SPEC["images"].axes[1:], shape, strict=True))
    for name, field in spec.items():
        if unknown := [axis for axis in field.axes if axis not in sizes]:
            raise UserError(f"only the data knows the size of axis {unknown[0]!r} of the field {name!r}")
    return {
        name: jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in field.axes), jnp.dtype(field.dtype))
        for name, field in spec.items()
    }


def count(tree: Params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def with_assumed_labels(experiment: Experiment, number: int = 2) -> Experiment:
    """The experiment with this many labels where only its data knows how many there are."""
    objective = experiment.objective
    fields = {field.name for field in dataclasses.fields(objective)}
    changes: JsonObject = {}
    if "num_labels" in fields and objective.num_labels is None:
        changes["num_labels"] = number
    if "labels" in fields and not objective.labels:
        changes["labels"] = tuple(f"label {i}" for i in range(number))
    return (
        dataclasses.replace(experiment, objective=dataclasses.replace(objective, **changes)) if changes else experiment
    )
