"""Checks before training starts: do model, objective, data, tokenizer and devices of an experiment fit together?"""

from collections.abc import Sequence

import jax

from bertgpt.config import Experiment
from bertgpt.data.loader import check_needs
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.sharding import BATCH_AXES, num_shards
from bertgpt.training.evaluate import Evaluation
from bertgpt.types import Batch, BatchSpec, Params, UserError


def check_fit(experiment: Experiment, tokenizer: Tokenizer, mesh: jax.sharding.Mesh) -> None:
    """Checks sizes, token types, the architecture and divisibility, before any data is prepared.

    Raises:
      UserError: two components of the experiment do not fit together.
    """
    model, data, objective = experiment.model, experiment.data, experiment.objective
    if tokenizer.vocab.size > model.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab.size} tokens but model.vocab_size={model.vocab_size}")
    if data.seq_len > model.max_len:
        raise UserError(f"data.seq_len={data.seq_len} exceeds model.max_len={model.max_len}")
    names = type(objective).__name__, type(model).__name__
    if model.architecture not in objective.architectures:
        wanted = " or ".join(objective.architectures)
        raise UserError(
            f"objective: {names[0]} is for a model of architecture {wanted}, but {names[1]} is one of architecture"
            f" {model.architecture}"
        )
    if data.num_types > max(model.num_types, 1):
        raise UserError(
            f"data: {type(data).__name__} uses {data.num_types} token types, but model.num_types={model.num_types}"
        )
    check_divisible(experiment, mesh)


def check_divisible(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Checks that a mesh can split batches and sequences.

    Raises:
      UserError: it cannot.
    """
    shards = num_shards(mesh.shape, BATCH_AXES)
    if experiment.batch_size % (shards * experiment.microbatches):
        raise UserError(
            f"batch_size={experiment.batch_size} is not divisible by {shards} devices ({shown_axes(mesh)})"
            f" × {experiment.microbatches} microbatches"
        )
    seq_len, parts = experiment.data.seq_len, mesh.shape["sequence"]
    if seq_len % parts:
        raise UserError(f"data.seq_len={seq_len} is not divisible by mesh.sequence={parts}")


def shown_axes(mesh: jax.sharding.Mesh) -> str:
    """The axes that split a batch, with their sizes."""
    return " × ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in BATCH_AXES if mesh.shape[axis] > 1) or "mesh.data=1"


def check_batch(experiment: Experiment, spec: BatchSpec, batch: Batch, mesh: jax.sharding.Mesh) -> None:
    """Checks that batches have the fields that the objective reads, and that every field can be split over devices.

    Raises:
      UserError: a field is missing, has another type or other axes, or has a number of examples that is not divisible.
    """
    names = type(experiment.objective).__name__, type(experiment.data).__name__
    check_needs(experiment.objective.needs, spec, *names, hint=experiment.objective.hint)
    parts = num_shards(mesh.shape, BATCH_AXES) * experiment.microbatches
    for name, array in batch.items():
        if len(array) % parts:
            raise UserError(
                f"batch_size={experiment.batch_size}: {len(array)} examples of {name} are not divisible by"
                f" {parts} ({shown_axes(mesh)} × {experiment.microbatches} microbatches)"
            )


def check_best_metric(
    experiment: Experiment, held_out: Sequence[Evaluation], params: Params, mesh: jax.sharding.Mesh
) -> None:
    """Checks, where checkpoints are ranked, that the evaluation and its metric exist and that the best is meant.

    Raises:
      UserError: `best_metric` or `best_mode` is wrong; the message names the metrics that there are.
    """
    if not experiment.keep_best:
        return
    said, (name, _, metric) = f"best_metric={experiment.best_metric!r}", experiment.best_metric.partition("/")
    regular = {evaluation.item.name: evaluation for evaluation in held_out if not evaluation.item.final_only}
    if name not in regular:
        raise UserError(
            f"{said}: no evaluation {name!r} runs during training; there is {', '.join(regular) or 'none'}, so that it"
            " must read EVALUATION/METRIC with one of these"
        )
    directions = {found.name: found.higher_is_better for found in regular[name].rehearse(params, mesh).metrics}
    if metric not in directions:
        raise UserError(f"{said}: {name} has no metric {metric!r}; it has {', '.join(directions)}")
    best_mode = {True: "max", False: "min", None: experiment.best_mode}[directions[metric]]
    if best_mode != experiment.best_mode:
        raise UserError(f"{said}: the best is its {best_mode}, but best_mode={experiment.best_mode!r}")
