"""Checkpoints of a run: complete, verified, the newest and the best of them kept.

RUN/checkpoints/<step>/{params,opt}       the arrays (orbax)
RUN/checkpoints/<step>/checkpoint.json    what else belongs to it, and checksums, which are verified before it is used
RUN/progress.json                         the newest step saved
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from bertgpt.config import Experiment
from bertgpt.distributed import on_main
from bertgpt.io.checksums import read_sealed, sealed
from bertgpt.io.directories import make_directory
from bertgpt.io.files import CannotWrite, partial_path, publish, remove_tree, write_json
from bertgpt.runs.arrays import load_arrays, saved_shapes, start_saving, write_errors
from bertgpt.runs.facts import FACTS, MARKS, SAVED, damage_of, difference, finite, identity, write_facts
from bertgpt.runs.saving import Saver, all_finite
from bertgpt.types import JsonObject, Params, UserError

log = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")

PARTIAL = re.compile(r"\.\d+(\.\d+-[0-9a-f]{8})?\.partial(\.orbax-checkpoint-tmp)?")  # being written or removed


@runtime_checkable
class State(Protocol):
    """What is saved: `training.state.TrainState`, a dataclass."""

    step: Any
    params: Params
    opt: Any


class Checkpoints:
    """Asynchronous saves as RUN/checkpoints/<step>, of which the newest and the best are kept.

    A checkpoint is written to a hidden directory, then its checksums, and then it is renamed: a directory whose name is
    a step is complete. Others are removed only after that. What an interrupted save leaves is removed by the next run.

    Where no step is given, the newest checkpoint that is intact is used. A newer one that is damaged, or holds numbers
    that are not finite, is named in a warning, and removed when the next one is saved.

    Several processes save together: each writes its arrays, process 0 everything else. What is found on disk, process 0
    tells the others.
    """

    def __init__(self, run: Path, experiment: Experiment | None = None, publish: Callable[[], None] = lambda: None):
        """`experiment` says how many checkpoints to keep; without it, checkpoints are only read.

        `publish` is called after each change, to make it visible where the run is kept (see `lock_run`).

        Raises:
          UserError: RUN/checkpoints is not a directory, or (CannotWrite) cannot be written.
        """
        self.directory = run / "checkpoints"
        self.run = run
        self._experiment, self._publish = experiment, publish
        self._damage: dict[tuple[int, tuple[str, ...]], str | None] = {}  # what is known of (step, items)
        self._named: set[int] = set()  # damaged steps that a warning has named
        self._saver: Saver | None = None
        self._keep: set[int] = set()  # steps that are not removed
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: exists and is not a directory")
        if experiment is not None:
            on_main("open the checkpoints", self._remove_partials)
            self._saver = Saver()

    def _remove_partials(self) -> None:
        make_directory(self.directory)
        with write_errors(self.directory):
            for entry in self.directory.iterdir():
                if PARTIAL.fullmatch(entry.name):
                    remove_tree(entry)

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in ascending order, damaged or not."""
        try:
            found = [entry for entry in self.directory.iterdir() if re.fullmatch(r"0|[1-9][0-9]*", entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.directory}: cannot be read: {error.strerror}") from None
        return sorted(int(entry.name) for entry in found if any((entry / mark).exists() for mark in MARKS))

    def latest(self) -> int | None:
        """Step of the newest checkpoint whose files are intact, None if there is no checkpoint.

        Raises:
          UserError: all checkpoints are damaged.
        """
        return self._newest(("params", "opt"), lambda step: step) if self.found() else None

    def found(self) -> list[int]:
        """`steps`, the same in all processes that train together."""
        return self._agree("list the checkpoints", self.steps)

    def save(
        self,
        state: State,
        metrics: Mapping[str, float] | None = None,
        progress: JsonObject | None = None,
        before: Callable[[], None] = lambda: None,
        keep: Collection[int] = (),
        wait: bool = False,
    ) -> None:
        """Starts to save a training state. Returns when the arrays are copied, not when they are on disk.

        If this step is saved already, only `metrics` are added to it. If a save fails for a reason that may pass, a
        warning says so, and `is_due` asks for another one; only when all have failed for PATIENCE seconds it is an
        error.

        Args:
          state: what is saved.
          metrics: of this step, by which the best checkpoints are kept.
          progress: what the training loop needs besides, to continue here.
          before: is called when the arrays are on disk, before the checkpoint appears.
          keep: steps of checkpoints that are not removed.
          wait: return when the checkpoint is on disk, and try again here if that fails.

        Raises:
          CannotWrite: it, or the one before, cannot be saved. Earlier checkpoints are intact.
        """
        step, items = int(state.step), {"params": state.params, "opt": state.opt}
        self._saver.wait()
        self._keep = set(keep)
        path = self.directory / str(step)
        if path in self._saver.saved:
            self.add_metrics(step, metrics or {})
            return
        facts = {"step": step, "metrics": finite(metrics or {}), "progress": progress or {}}

        def publish_it(partial: Path) -> None:
            before()
            self._complete(step, partial, facts)

        self._saver.save(path, items, publish_it, wait)

    @property
    def unsound(self) -> int | None:
        """The last step that was not saved, because not all its numbers are finite."""
        path = self._saver.unsound
        return None if path is None else int(path.name)

    def is_due(self) -> bool:
        """Whether a save has failed for a reason that may pass, and it is time to try again."""
        return self._saver.is_due()

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to a checkpoint, by which the best are kept.

        Raises:
          UserError: there is no such checkpoint, or it cannot be written.
        """

        def add() -> None:
            path = self.directory / str(self._existing(step)) / FACTS
            facts = read_sealed(path)
            write_json(path, sealed(facts | {"metrics": facts["metrics"] | finite(metrics)}))
            self._remove_others()
            self._publish()

        self.wait()
        if metrics:
            on_main("add metrics to a checkpoint", add)

    def metrics(self, step: int) -> dict[str, float | None]:
        """The metrics of a checkpoint, None where not finite; {} if it is damaged."""
        try:
            return read_sealed(self.directory / str(step) / FACTS)["metrics"]
        except UserError:
            return {}

    def progress(self, step: int) -> JsonObject:
        """What the training loop saved with a checkpoint; {} if nothing."""
        return read_sealed(self.directory / str(self._existing(step)) / FACTS).get("progress", {})

    def wait(self) -> None:
        """Waits until the checkpoint being saved is on disk, or has failed for a reason that may pass (see `save`).

        Raises:
          CannotWrite: it could not be written.
        """
        if self._saver is not None:
            self._saver.wait()

    def close(self) -> None:
        """Waits until everything is on disk. Errors: as `wait`."""
        if self._saver is not None:
            self._saver.close()

    def restore(self, like: State, step: int | None = None, any_experiment: bool = False) -> State:
        """Restores a training state with the shapes and shardings of `like`, bit for bit.

        Args:
          like: a state whose values are replaced.
          step: which checkpoint; None: the newest that is intact.
          any_experiment: take a checkpoint that another experiment than the run's has saved.

        Raises:
          UserError: there is no such checkpoint, it is damaged or has other shapes, or another experiment saved it.
        """

        def load(step: int) -> State:
            if not any_experiment and (foreign := difference(self.directory / str(step), self.run)):
                raise UserError(f"{foreign}; move it away, or continue with --accept_changed_inputs")
            restored = self._load(step, {"params": like.params, "opt": like.opt})
            if not all_finite(restored):
                raise _Damaged("holds numbers that are not finite")
            number = jax.device_put(np.asarray(step, like.step.dtype), like.step.sharding)
            if self._saver is not None:
                self._saver.saved.add(self.directory / str(step))
                self._saver.unsound = None  # training continues with another state
            return dataclasses.replace(like, step=number, params=restored["params"], opt=restored["opt"])

        return self._newest(("params", "opt"), load, step)

    def read(self, item: Literal["params", "opt"], step: int | None = None) -> Params:
        """One item of a checkpoint as numpy arrays on the host, on any machine. Errors: as `read_step`."""
        return self.read_step(item, step)[1]

    def read_step(self, item: Literal["params", "opt"], step: int | None = None) -> tuple[int, Params]:
        """The step that is read, and one item of its checkpoint as numpy arrays on the host, on any machine.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """

        def load(step: int) -> tuple[int, Params]:
            shapes = self._shapes(step).get(item)
            if not shapes:
                raise UserError(f"{self.directory / str(step)}: holds no {item}")
            if foreign := difference(self.directory / str(step), self.run):
                log.warning("%s", foreign)
            like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
            values = self._load(step, {item: like})[item]
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values)):
                raise _Damaged("holds numbers that are not finite")
            return step, values

        return self._newest((item,), load, step)

    # -- which checkpoint ---------------------------------------------------------------------------------------------

    def _newest(self, items: tuple[str, ...], load: Callable[[int], Loaded], step: int | None = None) -> Loaded:
        """Loads the given step, else the newest checkpoint that is intact."""
        damaged: dict[int, str] = {}
        found = [self._agree("find a checkpoint", lambda: self._existing(step))]
        while found:
            number = max(found)
            try:
                if (damage := self._damage_of(number, items)) is not None:
                    raise _Damaged(damage)
                loaded = load(number)
            except _Damaged as error:
                path = self.directory / str(number)
                if step is not None:
                    raise UserError(f"{path}: is damaged: {error}") from None
                if self._agree("look for a checkpoint", path.is_dir):  # else the run that saves them has removed it
                    self._damage[number, items] = damaged[number] = str(error)
                found = [other for other in self.found() if other not in damaged]
                continue
            for other, reason in damaged.items():
                if other in self._named:
                    continue
                self._named.add(other)
                log.warning(
                    "%s: is damaged (%s); the checkpoint before it is used: %s",
                    self.directory / str(other), reason, self.directory / str(number),
                )  # fmt: skip
            return loaded
        reasons = "; ".join(f"{self.directory / str(number)}: {reason}" for number, reason in damaged.items())
        raise UserError(f"{reasons}; no checkpoint is intact")

    def _existing(self, step: int | None) -> int:
        found = self.steps()
        if not found:
            raise UserError(f"{self.directory}: holds no complete checkpoint")
        if step is not None and step not in found:
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there is {', '.join(map(str, found))}")
        return max(found) if step is None else step

    def _damage_of(self, step: int, items: tuple[str, ...]) -> str | None:
        """What is wrong with the files of some items of a checkpoint; None if nothing is."""

        def find() -> str | None:
            if (step, items) not in self._damage:
                self._damage[step, items] = damage_of(self.directory / str(step), step, items)
            return self._damage[step, items]

        return self._agree("verify a checkpoint", find)

    def _agree(self, what: str, function: Callable[[], Any]) -> Any:
        """A JSON value about files. Where several processes train, it is what process 0 sees, which writes them."""
        return function() if self._experiment is None else on_main(what, function)

    def _load(self, step: int, like: dict[str, Params]) -> dict[str, Params]:
        path = self.directory / str(step)
        # orbax would refuse other names and shapes as well, but with a long message and threads that outlive it.
        saved, wanted = (
            {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named_leaves(tree).items()}
            for tree in ({name: self._shapes(step).get(name) for name in like}, like)
        )
        for name in (*saved, *wanted):
            here, there = wanted.get(name), saved.get(name)
            if here != there:
                raise UserError(f"{path}: cannot be restored: {name} {_kind(there)} there, but {_kind(here)} here")
        return load_arrays(path, like)

    def _shapes(self, step: int) -> dict[str, Params]:
        """Item → shapes and types of its arrays."""
        return saved_shapes(self.directory / str(step))

    # -- in the saver's thread, in process 0 --------------------------------------------------------------------------

    def _complete(self, step: int, partial: Path, facts: JsonObject) -> None:
        """Makes a directory whose arrays are complete a checkpoint."""
        path = self.directory / str(step)
        write_facts(partial, facts | {"experiment": identity(self.run)})
        if step in self.steps():  # it is damaged
            self._remove(step)
        if path.exists():
            raise CannotWrite(f"{path}: is in the way, and no checkpoint of this run; move it away")
        publish(partial, path)
        write_json(self.run / SAVED, {"step": step})
        self._damage = {known: damage for known, damage in self._damage.items() if known[0] != step}
        self._damage[step, ("params", "opt")] = None
        self._remove_others()
        self._publish()

    def _remove_others(self) -> None:
        """Removes checkpoints that are neither among the newest nor among the best, and those known to be damaged."""
        damaged = {step for (step, _), damage in self._damage.items() if damage is not None}
        intact = [step for step in self.steps() if step not in damaged]
        kept = {*intact[-self._experiment.keep_last :], *self._best(intact), *self._keep}
        for step in self.steps():
            if step not in kept:
                self._remove(step)

    def _best(self, steps: list[int]) -> list[int]:
        """The best of these by the experiment's metric. Those saved without an evaluation are not among them."""
        experiment = self._experiment
        values = {step: self.metrics(step).get(experiment.best_metric) for step in steps}
        sign = 1.0 if experiment.best_mode == "max" else -1.0
        ranked = sorted((sign * value, step) for step, value in values.items() if value is not None)
        return [step for _, step in ranked[len(ranked) - min(experiment.keep_best, len(ranked)) :]]

    def _remove(self, step: int) -> None:
        path = self.directory / str(step)
        if path.exists():
            aside = partial_path(path)  # a checkpoint half removed must not look like a damaged one
            os.replace(path, aside)
            remove_tree(aside)


class _Damaged(Exception):
    """A checkpoint that is not to be used, and why."""


def _kind(found: tuple[tuple[int, ...], str] | None) -> str:
    """A shape and type in words."""
    return "is missing" if found is None else f"has shape {found[0]} and type {found[1]}"


def write_params(directory: Path, params: Params) -> None:
    """Writes parameters as directory/checkpoints/0, which `Checkpoints.read` reads. Errors: CannotWrite."""
    path = directory / "checkpoints" / "0"
    with write_errors(path):
        start_saving(path, {"params": params})()
        write_facts(path, {"step": 0, "metrics": {}})


def named_leaves(tree: Params) -> dict[str, Any]:
    """Path a/b/c → leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
