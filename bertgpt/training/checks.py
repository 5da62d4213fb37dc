"""Checks before training starts: do model, objective, data, tokenizer and devices of an experiment fit together?"""

import jax

from bertgpt.config import Experiment
from bertgpt.data.loader import check_needs
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.types import Batch, BatchSpec, UserError


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
    num_shards = data_shards(mesh)
    if experiment.batch_size % (num_shards * experiment.microbatches):
        raise UserError(
            f"batch_size={experiment.batch_size} is not divisible by {num_shards} devices (data × fsdp)"
            f" × {experiment.microbatches} microbatches"
        )


def check_batch(experiment: Experiment, spec: BatchSpec, batch: Batch, mesh: jax.sharding.Mesh) -> None:
    """Checks that batches have the fields that the objective reads, and that every field can be split over devices.

    Raises:
      UserError: a field is missing, has another type or other axes, or has a number of examples that is not divisible.
    """
    names = type(experiment.objective).__name__, type(experiment.data).__name__
    check_needs(experiment.objective.needs, spec, *names, hint=experiment.objective.hint)
    parts = data_shards(mesh) * experiment.microbatches
    for name, array in batch.items():
        if len(array) % parts:
            raise UserError(
                f"batch_size={experiment.batch_size}: {len(array)} examples of {name} are not divisible by"
                f" {parts} (data × fsdp × microbatches)"
            )


def data_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the batch is split over devices."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
