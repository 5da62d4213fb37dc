"""Checkpoints and the run directory: everything needed to resume, evaluate or start from a run on another machine.

RUN/experiment.json   the experiment as data            RUN/checkpoints/<step>/{params,opt}   (orbax)
RUN/tokenizer/        vocabulary, Hugging Face layout   RUN/metrics.jsonl, RUN/results.json, RUN/tensorboard/
RUN/versions.json     packages and devices it ran on
"""

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from bertgpt.config import Experiment, diff, from_json, is_operational, to_json
from bertgpt.io import read_json, remove_tree, write_json
from bertgpt.types import UserError

PACKAGES = ("bertgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


def open_run(run: Path, experiment: Experiment) -> None:
    """Makes the run directory, or checks that the one there belongs to this experiment.

    Raises:
      UserError: the directory cannot be written, or holds checkpoints of another experiment; the message lists the
        leaves that differ. Leaves in `config.OPERATIONAL` may.
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
        if changed and Checkpoints(run).latest() is None:  # an attempt that got nowhere, a mistyped path say
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


class Checkpoints:
    """Asynchronous saves under RUN/checkpoints, keeping the last few and the best few.

    A save that was interrupted leaves only a temporary folder, which the next run removes.
    """

    def __init__(self, run: Path, experiment: Experiment | None = None):
        """`experiment` says how many to keep; without it, checkpoints are only read."""
        self.directory = run / "checkpoints"
        options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
        if experiment is not None:
            sign = 1.0 if experiment.best_mode == "max" else -1.0
            policies = [keep.LatestN(experiment.keep_last)]
            if experiment.keep_best:
                # Checkpoints saved without an evaluation have no metric and never count as best.
                best = keep.BestN(
                    get_metric_fn=lambda metrics: sign * metrics[experiment.best_metric],
                    n=experiment.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
                policies.append(best)
            options = ocp.CheckpointManagerOptions(preservation_policy=keep.AnyPreservationPolicy(policies))
        handlers = {item: ocp.StandardCheckpointHandler() for item in ("params", "opt")}
        self.manager = ocp.CheckpointManager(self.directory.absolute(), options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Number of the newest complete checkpoint, None if there is none."""
        return self.manager.latest_step()

    def save(self, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts saving a TrainState; returns once the arrays are copied, not once they are on disk."""
        step = int(state.step)
        if self.manager.latest_step() == step:
            return
        args = ocp.args.Composite(params=ocp.args.StandardSave(state.params), opt=ocp.args.StandardSave(state.opt))
        self.manager.save(step, args=args, metrics=metrics or None)

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Restores a TrainState with the shapes and shardings of `like`, bit for bit.

        Raises:
          UserError: no such checkpoint, or a file of it is damaged or of other shapes.
        """
        step = self._existing(step)
        parts = {"params": like.params, "opt": like.opt}
        restored = self._restore(step, ocp.args.Composite(**{k: ocp.args.StandardRestore(v) for k, v in parts.items()}))
        number = jax.device_put(np.asarray(step, like.step.dtype), like.step.sharding)
        return dataclasses.replace(like, step=number, params=restored["params"], opt=restored["opt"])

    def read(self, item: Literal["params", "opt"], step: int | None = None) -> Any:
        """One part of a checkpoint as numpy arrays on the host, on any machine.

        Raises:
          UserError: no such checkpoint, or a file of it is damaged.
        """
        step = self._existing(step)
        try:
            shapes = self.manager.item_metadata(step)[item].tree
        except Exception as error:  # orbax raises many types for damaged metadata
            raise UserError(f"{self.directory / str(step)}: cannot be read: {_line(error)}") from None
        if not shapes:
            raise UserError(f"{self.directory / str(step)}: holds no {item}")
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return self._restore(step, ocp.args.Composite(**{item: ocp.args.StandardRestore(like)}))[item]

    def _existing(self, step: int | None) -> int:
        found = self.manager.all_steps()
        if not found:
            raise UserError(f"{self.directory}: holds no complete checkpoint")
        if step is not None and step not in found:
            raise UserError(
                f"{self.directory}: no checkpoint of step {step}; there is {', '.join(map(str, sorted(found)))}"
            )
        return max(found) if step is None else step

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self.manager.restore(step, args=args)
        except Exception as error:  # orbax and tensorstore raise many types for damaged files
            raise UserError(f"{self.directory / str(step)}: cannot be restored: {_line(error)}") from None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def write_params(directory: Path, params: Any) -> None:
    """Writes parameters alone as directory/checkpoints/0, which `Checkpoints.read` reads."""
    handlers = {"params": ocp.StandardCheckpointHandler()}
    manager = ocp.CheckpointManager((directory / "checkpoints").absolute(), item_handlers=handlers)
    manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    manager.wait_until_finished()
    manager.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Path → leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
