"""The teacher of a distilled run: loaded once, frozen, and run on every batch before the student's step.

Its parameters are an argument of a program of their own. They are in no checkpoint, and get no gradient; a digest in
inputs.json tells a resumed run whether they are still the same.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from bertgpt.config import Experiment
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import Model, build_apply, find_model, for_any_device, load
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.sharding import spec, state_shardings
from bertgpt.training.state import NOISE, boxed_state, random_key
from bertgpt.types import Batch, Objective, Params, UserError

Teach = Callable[[Batch, Int[Array, ""] | int], Batch]
"""(batch on the devices, step) → the batch with what the teacher computes for it"""


def load_teacher(experiment: Experiment, tokenizer: Tokenizer, workdir: Path) -> Model | None:
    """The teacher of an experiment, with parameters on the host; None if it has none.

    Raises:
      UserError: the teacher is missing, has another tokenizer or other labels, or cannot read the data.
    """
    name = experiment.objective.learns_from
    if name is None:
        return None
    if name == experiment.name:
        raise UserError(f"objective.teacher={name!r} is the run itself; give the student another --name")
    teacher = load(find_model(name, workdir), arrange="host")
    said = f"objective.teacher: {name}"
    if teacher.tokenizer is None or teacher.tokenizer.hash != tokenizer.hash:
        raise UserError(f"{said} has another tokenizer than the run, so that their tokens do not correspond")
    if teacher.config.architecture not in experiment.objective.architectures:
        raise UserError(f"{said} is of architecture {teacher.config.architecture}, which the objective is not for")
    if teacher.config.max_len < experiment.data.seq_len:
        raise UserError(f"{said} reads {teacher.config.max_len} tokens, but data.seq_len={experiment.data.seq_len}")
    if experiment.data.num_types > max(teacher.config.num_types, 1):
        raise UserError(f"{said} has {teacher.config.num_types} token types; the data uses {experiment.data.num_types}")
    own, known = experiment.data.label_set.shown, teacher.labels.shown
    if own and known and own != known:
        raise UserError(f"{said} was trained for the labels {', '.join(known)}, but the data has {', '.join(own)}")
    return teacher


def digest(teacher: Model | None) -> dict[str, str]:
    """{"the teacher": a hash of its config and weights}; {} if there is none."""
    if teacher is None:
        return {}
    value = hashlib.sha256(repr(teacher.config).encode())
    for name, leaf in sorted(named_leaves(teacher.params).items()):
        value.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return {"the teacher": value.hexdigest()[:16]}


def make_teach(
    experiment: Experiment, objective: Objective, teacher: Model | None, batch: Batch, mesh: jax.sharding.Mesh
) -> Teach:
    """The function that adds to a batch what the teacher computes for it; without a teacher it adds nothing.

    The teacher reads the batch as the student will: prepared with the same noise, but without dropout.

    Args:
      experiment: its model is the student.
      objective: its `observe` says what to compute.
      teacher: from `load_teacher`.
      batch: a batch on the devices, for its shapes.
      mesh: the devices; the teacher is sharded like any model.

    Raises:
      UserError: the teacher lacks parameters that the task needs, such as a trained head.
    """
    if teacher is None:
        return lambda batch, step: batch
    module = for_any_device(teacher.config).make(experiment.compute_dtype)
    abstract = jax.eval_shape(lambda: boxed_state(module, objective, optax.identity(), batch, experiment.seed)).params
    shardings = state_shardings(abstract, mesh)
    params = jax.tree.map(jax.device_put, needed(shardings, abstract, teacher, experiment), shardings)
    layers = vars(experiment.model).get("num_layers", 0)
    apply = build_apply(module)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, spec(("batch",))))
    def observed(params: Params, batch: Batch, step: Int[Array, ""]) -> Batch:
        prepared = objective.prepare(random_key(experiment.seed, NOISE, step), batch)
        return objective.observe(apply, params, prepared, layers)

    return lambda batch, step: batch | observed(params, batch, step)


def needed(like: Params, abstract: Params, teacher: Model, experiment: Experiment) -> Params:
    """The teacher's parameters that the task uses, in a tree like this one.

    Raises:
      UserError: it lacks one, or has it for another number of labels.
    """
    held, wanted = named_leaves(teacher.params), named_leaves(like)
    for name, leaf in zip(wanted, jax.tree.leaves(abstract), strict=True):
        shape = leaf.shape
        if name not in held or held[name].shape != shape:
            found = "lacks it" if name not in held else f"has shape {held[name].shape}"
            raise UserError(
                f"objective.teacher: {experiment.objective.learns_from}: the task needs {name} of shape {shape}, and"
                f" the teacher {found}; fine-tune the teacher on the task first"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [held[name] for name in wanted])
