"""The run directory: everything needed to resume, evaluate or start from a run on another machine.

RUN/experiment.json   the experiment as data            RUN/checkpoints/      `bertgpt.runs.checkpoint`
RUN/tokenizer/        vocabulary, Hugging Face layout   RUN/metrics.jsonl, RUN/results.json, RUN/tensorboard/
RUN/versions.json     packages and devices it ran on    RUN/train.log         what the terminal showed, with times
RUN/inputs.json       digests of tokenizer and data
RUN/progress.json     the newest step saved
RUN/tokenizer.sha256.json   checksums of the tokenizer's files

experiment.json and results.json hold their own checksum.
"""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from bertgpt.config import Experiment, diff, from_json, is_operational, missing_part, to_json
from bertgpt.distributed import barrier, is_main, on_main, process_count
from bertgpt.io.checksums import checksum, checksums, find_damage, read_sealed, read_sealed_or_edited, sealed
from bertgpt.io.directories import make_directory, remove_partials
from bertgpt.io.files import check_local, partial_path, remove_tree, write_json
from bertgpt.io.locks import lock
from bertgpt.io.paths import url_of
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.facts import SAVED
from bertgpt.runs.mirror import TRAINING_LOCK, mirrored
from bertgpt.types import JsonObject, UserError

SHARED_WAIT = 60
"""seconds until a new file must be visible to all processes"""
PROBE = "shared"
LOGGED = "metrics.jsonl"
CHECKSUMS = "tokenizer.sha256.json"
FILES = (
    *(CHECKSUMS, "tokenizer", "metrics.jsonl", PROBE),
    *(f"{name}.json" for name in ("experiment", "inputs", "progress", "results", "versions")),
)
PACKAGES = ("bertgpt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[Callable[[], None]]:
    """Keeps other processes from training in a run directory, which is created, during the block.

    What a process that was killed left half-written in it is removed.

    Args:
      run: the directory, or the local copy of a run at a URL, which is made equal to it (see `runs.mirror`).

    Yields:
      A function that makes all that was written so far visible at the URL; nothing happens without one.

    Raises:
      UserError: another process trains there, which is named, or (CannotWrite) the directory is not writable.
    """
    make_directory(run)
    with lock(run / TRAINING_LOCK, f"{run}: another process is training this run", wait=False):
        remove_partials(run, FILES)
        with mirrored(run) as publish:
            yield publish


def check_shared(run: Path) -> None:
    """Checks that all processes see the run directory that process 0 has opened.

    Raises:
      UserError: one does not.
    """
    if process_count() == 1:
        return
    probe = partial_path(run / PROBE)
    seen = on_main("open the run directory", lambda: (probe.touch(), probe.name)[1])
    deadline = time.monotonic() + SHARED_WAIT
    while not (run / seen).exists():
        if time.monotonic() > deadline:
            needed = "the same --workdir" if url_of(run) is None else "XDG_CACHE_HOME, where the local copy lies,"
            raise UserError(
                f"{run.absolute()} on {platform.node()} is not the folder that process 0 writes: all processes need"
                f" {needed} on a file system that they share"
            )
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(run)  # network file systems notice new files sooner
    barrier("a look at the run directory")
    if is_main():
        probe.unlink(missing_ok=True)


def open_run(run: Path, experiment: Experiment) -> None:
    """Creates the run directory, or checks that an existing one belongs to this experiment.

    An experiment with `epochs` fits a run with the same fields and any number of steps, and does not replace its
    experiment.json: it is to be checked once more when its steps are known.

    Raises:
      UserError: the directory is not writable, or holds checkpoints of another experiment; the message lists the leaves
        that differ. Operational fields may differ.
    """
    make_directory(run)
    path = run / "experiment.json"
    saved = bool(Checkpoints(run).steps())
    if not saved and any((run / name).exists() for name in (SAVED, "results.json")):
        raise UserError(
            f"{run}: its checkpoints are gone; put them back, give another --name, or remove the run to start it again"
        )
    if not path.exists() and saved:
        raise UserError(f"{path}: is missing, but there are checkpoints; put it back, or give another --name")
    if path.exists():
        old = load_experiment(run)
        changed = {leaf: values for leaf, values in diff(old, experiment).items() if not is_operational(leaf)}
        if (old.epochs is None) != (experiment.epochs is None):
            changed = {leaf: values for leaf, values in changed.items() if leaf not in ("steps", "epochs")}
            if not changed and experiment.epochs is not None:
                return
        if changed and not saved:  # an earlier attempt failed before its first checkpoint
            for left in (run / "tokenizer", run / "tensorboard"):
                remove_tree(left)
            (run / "metrics.jsonl").unlink(missing_ok=True)
        elif changed:
            lines = "; ".join(f"{leaf} was {old!r}, now {new!r}" for leaf, (old, new) in changed.items())
            raise UserError(f"{run} holds a run of another experiment: {lines}. Give another --name or --workdir")
    write_json(path, sealed(to_json(experiment)))
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
    write_json(run / "versions.json", {"python": platform.python_version(), **versions, "devices": devices})


def load_experiment(run: Path) -> Experiment:
    """The experiment of a run directory.

    Raises:
      UserError: the directory is no run, or its experiment.json is broken.
    """
    path = run / "experiment.json"
    facts = read_facts(run)
    try:
        experiment = from_json(facts)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: does not hold an experiment")
    if field := missing_part(experiment):
        raise UserError(f"{path}: {field} is missing")
    return experiment


def read_facts(run: Path) -> JsonObject:
    """The content of a run's experiment.json.

    Raises:
      UserError: the directory is no run, or the file is damaged.
    """
    check_local(run)
    path = run / "experiment.json"
    if not path.exists():
        raise UserError(f"{run}: no run here (no experiment.json)")
    return read_sealed_or_edited(path)


def record_tokenizer(run: Path) -> None:
    """Records the checksums of RUN/tokenizer. Errors: as `io.files.write_json`."""
    write_json(run / CHECKSUMS, sealed({"files": checksums(run / "tokenizer")}))


def check_tokenizer(run: Path) -> None:
    """Compares the files of RUN/tokenizer with what `record_tokenizer` recorded, if it did.

    Raises:
      UserError: a file is missing or damaged, or the directory is.
    """
    folder = run / "tokenizer"
    if not folder.is_dir():
        kind = "is a link to a folder that is missing" if folder.is_symlink() else "is missing"
        raise UserError(f"{folder}: {kind if not folder.exists() else 'is not a directory'}")
    if (run / CHECKSUMS).exists() and (damage := find_damage(folder, read_sealed(run / CHECKSUMS)["files"])):
        raise UserError(f"{folder}: is damaged: {damage}; if you changed it, remove {run / CHECKSUMS}")


def write_results(run: Path, results: JsonObject) -> None:
    """Writes results.json, with the checksum of metrics.jsonl, which is complete. Errors: as `io.files.write_json`."""
    logged = {LOGGED: checksum(run / LOGGED)} if (run / LOGGED).exists() else {}
    write_json(run / "results.json", sealed(results | logged))


def read_results(run: Path) -> JsonObject | None:
    """results.json, with NaN where it has null, which stands for the value of a metric that was not finite.

    Returns:
      Its content; None while the run is unfinished.

    Raises:
      UserError: the file is damaged.
    """
    path = run / "results.json"
    if not path.exists():
        return None
    results = read_sealed_or_edited(path)
    logged = results.pop(LOGGED, None)
    if logged is not None and (damage := find_damage(run, {LOGGED: logged})):
        raise UserError(f"{run}: is damaged: {damage}; without results.json the log is taken as it is")

    def numbers(values: object) -> object:
        if isinstance(values, dict):
            return {name: numbers(value) for name, value in values.items()}
        return float("nan") if values is None else values

    return results | {name: numbers(results[name]) for name in ("evals", "baselines") if name in results}
