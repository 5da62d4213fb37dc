"""The run directory: everything needed to resume, evaluate or start from a run on another machine.

RUN/experiment.json   the experiment as data            RUN/checkpoints/      `bertgpt.checkpoint`
RUN/tokenizer/        vocabulary, Hugging Face layout   RUN/metrics.jsonl, RUN/results.json, RUN/tensorboard/
RUN/versions.json     packages and devices it ran on    RUN/train.log         what the terminal showed, with times
RUN/progress.json     sums of metrics since the last line of metrics.jsonl, for each checkpoint
"""

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import jax

from bertgpt.checkpoint import Checkpoints
from bertgpt.config import Experiment, diff, from_json, is_operational, to_json
from bertgpt.io import CannotWrite, read_json, read_json_object, remove_tree, write_json
from bertgpt.locks import lock
from bertgpt.types import JsonObject, UserError

PACKAGES = ("bertgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keeps other processes from training in a run directory, which is created, during the block.

    What a process that was killed left half-written in it is removed.

    Raises:
      UserError: another process trains there, which is named, or (CannotWrite) the directory is not writable.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{run}: cannot write here: {error.strerror}") from None
    with lock(run / ".training.lock", f"{run}: another process is training this run", wait=False):
        for left in run.glob(".*.partial"):
            if left.is_dir():
                remove_tree(left)
            else:
                left.unlink(missing_ok=True)
        yield


def read_results(run: Path) -> JsonObject:
    """results.json, with NaN where it has null, which stands for the value of a metric that was not finite.

    Raises:
      UserError: the file is missing or damaged.
    """
    results = read_json_object(run / "results.json")

    def numbers(values: object) -> object:
        if isinstance(values, dict):
            return {name: numbers(value) for name, value in values.items()}
        return float("nan") if values is None else values

    return results | {name: numbers(results[name]) for name in ("evals", "baselines") if name in results}


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
        if changed and not Checkpoints(run).steps():  # an earlier attempt failed before its first checkpoint
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
