"""Checkpoints and the run directory: everything needed to resume, evaluate or start from a run on another machine.

RUN/experiment.json   the experiment as data            RUN/checkpoints/<step>/{params,opt}   (orbax)
RUN/tokenizer/        vocabulary, Hugging Face layout   RUN/metrics.jsonl, RUN/results.json, RUN/tensorboard/
RUN/versions.json     packages and devices it ran on
"""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bertgpt.config import Experiment, diff, from_json, is_operational, to_json
from bertgpt.io import read_json, remove_tree, write_json
from bertgpt.types import Params, UserError

PACKAGES = ("bertgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


def open_run(run: Path, experiment: Experiment) -> None:
    """Creates the run directory, or checks that an existing one belongs to this experiment.

    Raises:
      UserError: the directory is not writable, or holds checkpoints of another experiment; the message lists the leaves
        that differ. Operational fields may differ.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / ".writable").touch()
        (run / ".writable").unlink()
    except OSError as error:
        raise UserError(f"{run}: cannot write here: {error.strerror}") from None
    path = run / "experiment.json"
    if path.exists():
        changed = {
            leaf: values for leaf, values in diff(load_experiment(run), experiment).items() if not is_operational(leaf)
        }
        if changed and Checkpoints(run).latest() is None:  # an earlier attempt failed before its first checkpoint
            for left in (run / "tokenizer", run / "tensorboard"):
                remove_tree(left)
            (run / "metrics.jsonl").unlink(missing_ok=True)
        elif changed:
            lines = "; ".join(f"{leaf} was {old!r}, now {new!r}" for leaf, (old, new) in changed.items())
            raise UserError(f"{run} holds a run of another experiment: {lines}. Give another --name or --workdir")
    write_json(path, to_json(experiment))
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
    write_json(run / "versions.json", {"python": platform.python_version(), **versions, "devices": devices})


def load_experiment(run: Path) -> Experiment:
    """The experiment of a run directory.

    Raises:
      UserError: the directory is no run, or its experiment.json is broken.
    """
    if not (run / "experiment.json").exists():
        raise UserError(f"{run}: no run here (no experiment.json)")
    experiment = from_json(read_json(run / "experiment.json"))
    if not isinstance(experiment, Experiment):
        raise UserError(f"{run / 'experiment.json'}: does not hold an experiment")
    return experiment


@runtime_checkable
class State(Protocol):
    """What is saved: `training.state.TrainState`, a dataclass."""

    step: Any
    params: Params
    opt: Any


# Up to this size one device writes all of a replicated array; beyond, each device writes a part.
ARRAY_OPTIONS = ocp.options.ArrayOptions(
    saving=ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=1 << 20)
)


class Checkpoints:
    """Asynchronous saves under RUN/checkpoints, of which the newest and the best are kept.

    An interrupted save leaves only a temporary folder, which the next run removes.
    """

    def __init__(self, run: Path, experiment: Experiment | None = None):
        """`experiment` says how many checkpoints to keep; without it, checkpoints are only read."""
        self.directory = run / "checkpoints"
        self._checkpointer: ocp.training.Checkpointer | None = None
        path = self.directory.absolute()
        if experiment is not None:
            self._checkpointer = ocp.training.Checkpointer(
                path,
                context=ocp.Context(array_options=ARRAY_OPTIONS),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=_preservation(experiment),
                cleanup_tmp_directories=True,
            )
        elif path.is_dir():  # orbax would create it
            self._checkpointer = ocp.training.Checkpointer(path)

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in ascending order."""
        return [] if self._checkpointer is None else [found.step for found in self._checkpointer.checkpoints]

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def save(self, state: State, metrics: dict[str, float] | None = None) -> None:
        """Starts to save a training state. Returns when the arrays are copied, not when they are on disk."""
        step = int(state.step)
        if self.latest() == step:
            return
        parts = {"params": state.params, "opt": state.opt}
        self._checkpointer.save_checkpointables_async(step, parts, metrics=metrics or None)

    def restore(self, like: State, step: int | None = None) -> State:
        """Restores a training state with the shapes and shardings of `like`, bit for bit.

        Raises:
          UserError: there is no such checkpoint, or it is damaged or has other shapes.
        """
        step = self._existing(step)
        restored = self._load(step, {"params": like.params, "opt": like.opt})
        number = jax.device_put(np.asarray(step, like.step.dtype), like.step.sharding)
        return dataclasses.replace(like, step=number, params=restored["params"], opt=restored["opt"])

    def read(self, item: Literal["params", "opt"], step: int | None = None) -> Params:
        """One item of a checkpoint as numpy arrays on the host, on any machine.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        step = self._existing(step)
        try:
            shapes = self._checkpointer.checkpointables_metadata(step).metadata.get(item)
        except Exception as error:  # orbax raises many types for damaged metadata
            raise UserError(f"{self.directory / str(step)}: cannot be read: {_line(error)}") from None
        if not shapes:
            raise UserError(f"{self.directory / str(step)}: holds no {item}")
        return self._load(step, {item: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)})[item]

    def _existing(self, step: int | None) -> int:
        found = self.steps()
        if not found:
            raise UserError(f"{self.directory}: holds no complete checkpoint")
        if step is not None and step not in found:
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there is {', '.join(map(str, found))}")
        return max(found) if step is None else step

    def _load(self, step: int, abstract: dict[str, Params]) -> dict[str, Params]:
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:  # orbax and tensorstore raise many types for damaged files
            raise UserError(f"{self.directory / str(step)}: cannot be restored: {_line(error)}") from None

    def close(self) -> None:
        """Waits until everything is on disk."""
        if self._checkpointer is not None:
            self._checkpointer.close()


def _preservation(experiment: Experiment) -> ocp.training.preservation_policies.PreservationPolicy:
    """Which checkpoints are kept: the newest, and the best by the experiment's metric."""
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(experiment.keep_last)]
    if experiment.keep_best:
        sign = 1.0 if experiment.best_mode == "max" else -1.0
        # Checkpoints saved without an evaluation have no metric and are never among the best.
        best = policies.BestN(
            get_metric_fn=lambda metrics: sign * metrics[experiment.best_metric],
            n=experiment.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def write_params(directory: Path, params: Params) -> None:
    """Writes parameters as directory/checkpoints/0, which `Checkpoints.read` reads."""
    with ocp.training.Checkpointer((directory / "checkpoints").absolute()) as checkpointer:
        checkpointer.save_checkpointables(0, {"params": params})


def _line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:300]


def named_leaves(tree: Params) -> dict[str, Any]:
    """Path a/b/c → leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
