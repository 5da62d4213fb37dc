"""Search for good settings of an experiment: Optuna proposes values of its leaves, each trial is a run with them.

A study lies in a database, so that any number of machines can work on it and the same command goes on with it. What is
proposed is a function of the seed, the number of the trial and what the study knows: a search that was interrupted
proposes what it would have without the interruption. Needs the extra [tune].
"""

import contextlib
import dataclasses
import json
import math
import platform
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertgpt.config import OPERATIONAL, Experiment, parse_overrides, to_json
from bertgpt.prepare.workers import Unfinished, lock
from bertgpt.studies.report import flatten
from bertgpt.studies.space import Dimension, arguments
from bertgpt.training.loop import train
from bertgpt.types import UserError

# So many trials are drawn at random, and run to their end, before TPE and the pruners have something to go by. TPE's
# own default, ten, would make a study of a dozen trials a random search.
STARTUP = 5
# Evaluations of a trial that a pruner sees if the experiment plans none.
EVALUATIONS = 5
# Seconds before a process asks again that was given a trial which another one trains.
PAUSE = 1.0
# Ends of the names of metrics that are better the lower they are.
LOWER = ("loss", "error", "perplexity")


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched, for what, and how."""

    experiment: Experiment
    space: tuple[Dimension, ...]
    trials: int
    """so many in all: finished, pruned and failed, of earlier calls and other machines too"""
    workdir: Path = Path("runs")
    """folder of the trials' runs"""
    study: str | None = None
    """its name in the storage, and that of the trials; None: the experiment's"""
    storage: str | None = None
    """database URL; None: a file in workdir"""
    pruner: str = "median"
    """what stops a bad trial early: median, hyperband or none"""
    metric: str | None = None
    """EVALUATION/METRIC; None: the experiment's best_metric"""
    direction: str | None = None
    """minimize or maximize; None: the experiment's for its best_metric, else as LOWER says"""
    take_over: bool = False
    """go on with trials of other machines too that did not finish; only if none works on the study any more"""
    keep_checkpoints: bool = False
    """keep those of all trials, not only of the best"""

    def settled(self) -> "Search":
        """With nothing left to a default. A trial sees no test data and no baselines: it is judged by validation.

        What is searched for is evaluated while a trial trains too, even if the experiment does so at its end only.

        Raises:
          UserError: no such evaluation, or one of the test split.
        """
        if self.trials < 1:
            raise UserError(f"--trials {self.trials} must be at least 1")
        own = self.experiment.best_metric
        metric = self.metric or own
        direction = self.direction or ("minimize" if metric.endswith(LOWER) else "maximize")
        if self.direction is None and metric == own:
            direction = "minimize" if self.experiment.best_mode == "min" else "maximize"
        name, _, score = metric.partition("/")
        evals = {item.name: item for item in self.experiment.evals}
        if not score:
            raise UserError(
                f"--metric {metric}: must be EVALUATION/METRIC, such as {next(iter(evals), 'validation')}/loss"
            )
        if name not in evals:
            has = ", ".join(evals) or "none"
            raise UserError(f"--metric {metric}: {self.experiment.name} has no evaluation {name!r}; it has {has}")
        if evals[name].split == "test":
            raise UserError(f"--metric {metric}: {name!r} is test data, which a search must not see")
        every = self.experiment.eval_every
        if self.pruner != "none" and not every:
            every = max(1, self.experiment.steps // EVALUATIONS)
        kept = tuple(
            dataclasses.replace(item, final_only=item.final_only and item.name != name)
            for item in self.experiment.evals
            if item.split != "test"
        )
        experiment = dataclasses.replace(
            self.experiment, evals=kept, baselines=(), eval_every=every, keep_best=0, best_metric=metric
        )
        study = self.study or self.experiment.name
        storage = self.storage or f"sqlite:///{(self.workdir / 'study.db').absolute()}"
        return dataclasses.replace(
            self, experiment=experiment, metric=metric, direction=direction, study=study, storage=storage
        )

    def definition(self) -> dict[str, Any]:
        """What may not change while a study goes on, as JSON."""
        free = (*OPERATIONAL, "name")
        experiment = {name: value for name, value in to_json(self.experiment).items() if name not in free}
        space = {part.path: {k: v for k, v in part._asdict().items() if k != "path"} for part in self.space}
        known = {"experiment": experiment, "space": space, "metric": self.metric, "direction": self.direction}
        return json.loads(json.dumps(known))

    def trial(self, trial: Any) -> Experiment:
        """The experiment of an Optuna trial, whose values are drawn if they are not yet.

        Raises:
          UserError: the values do not fit together.
        """
        params = {part.path: part.suggest(trial) for part in self.space}
        experiment = parse_overrides(self.experiment, arguments(self.space, params))
        return dataclasses.replace(experiment, name=self.run_name(trial.number))

    def run_name(self, number: int) -> str:
        return f"{self.study}.trial{number:03d}"


class WrongMetric(UserError):
    """The evaluation has no such number: no trial can have it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where no run is under way that could remember it."""


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'bertgpt[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_study(search: Search) -> tuple[Any, Any]:
    """The Optuna study of a settled search and its storage; a new one tries the experiment's own values first.

    Raises:
      UserError: the storage cannot be opened, or the study there is of another search; the message lists what differs.
    """
    optuna = import_optuna()
    search.workdir.mkdir(parents=True, exist_ok=True)
    waiting = {"connect_args": {"timeout": 60}} if search.storage.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(search.storage, engine_kwargs=waiting)
    except Exception as error:  # SQLAlchemy and the drivers raise many types; the URL may hold a password
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--storage: cannot be opened: {line}") from None

    def load() -> Any:
        return optuna.create_study(
            storage=storage, study_name=search.study, direction=search.direction, load_if_exists=True
        )

    study = load()
    definition = search.definition()
    old, new = flatten(study.user_attrs.get("definition", definition)), flatten(definition)
    changed = [path for path in dict.fromkeys([*old, *new]) if old.get(path) != new.get(path)]
    if changed and any(trial.state.name != "WAITING" for trial in study.get_trials(deepcopy=False)):
        said = "; ".join(f"{path} was {old.get(path)!r}, now {new.get(path)!r}" for path in changed)
        raise UserError(f"study {search.study!r} is of another search: {said}. Give another --study")
    if changed:  # an attempt that got nowhere
        optuna.delete_study(study_name=search.study, storage=storage)
        study = load()
    if "definition" not in study.user_attrs:
        study.set_user_attr("definition", definition)
        own = {part.path: part.default for part in search.space}
        if None not in own.values():
            study.enqueue_trial(own, skip_if_exists=True)
    study.pruner = make_pruner(search)
    return study, storage


def make_pruner(search: Search) -> Any:
    optuna = import_optuna()
    experiment = search.experiment
    if search.pruner == "median":
        # In the first third the warm-up of the learning rate, and chance, decide who is ahead.
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=experiment.steps // 3)
    if search.pruner == "hyperband":
        ends = [end for part in search.space if part.path == "steps" for end in (*part.choices, part.high)]
        longest = max(map(int, [experiment.steps, *ends]))
        return optuna.pruners.HyperbandPruner(min_resource=experiment.eval_every, max_resource=longest)
    return optuna.pruners.NopPruner()


def make_sampler(seed: int, number: int) -> Any:
    """TPE (Bergstra et al. 2011) with random numbers of this trial's own: the same after a restart."""
    optuna = import_optuna()
    state = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=state)


def tune(search: Search) -> tuple[Any, str | None]:
    """Carries out a search, or goes on with it, until its study has enough trials.

    A trial that diverges or does not fit into memory counts as failed, and the search goes on. One that was stopped, or
    whose process died, goes on from its checkpoint when the search does.

    Returns:
      The Optuna study, and None or the name of the signal that ended the search early.

    Raises:
      UserError: see `open_study`; or the first trial of all could not be set up.
    """
    search = search.settled()
    study, storage = open_study(search)
    try:
        with terminable():
            while True:
                release_dead(search, study, storage)
                if sum(t.state.name != "WAITING" for t in study.get_trials(deepcopy=False)) >= search.trials:
                    return study, None
                trial = study.ask()
                study.sampler = make_sampler(search.experiment.seed, trial.number)
                stopped = run_trial(search, study, storage, trial)
                if stopped is not None:
                    return study, stopped
    except KeyboardInterrupt as error:
        return study, "SIGTERM" if isinstance(error, Terminated) else "SIGINT"


def run_trial(search: Search, study: Any, storage: Any, trial: Any) -> str | None:
    """Trains one trial and tells the study; or returns the name of the signal that stopped it.

    A trial that was not finished, for whatever reason, any process may have then. One that another process trains
    already, or has finished, is that process's: two may find the trial of a dead one at the same moment.
    """
    run = search.workdir / search.run_name(trial.number)
    run.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(run / ".lock", "", wait=False))
        except Unfinished:
            time.sleep(PAUSE)
            return None
        if not set_state(storage, study, trial.number, "RUNNING"):
            return None
        held.callback(set_state, storage, study, trial.number, "WAITING")  # still under the lock
        stopped = train_trial(search, study, trial, run)
    if stopped is None:
        say(search, study, trial.number)
        if not search.keep_checkpoints:
            remove_checkpoints(search, study)
    return stopped


def train_trial(search: Search, study: Any, trial: Any, run: Path) -> str | None:
    """The part of `run_trial` that holds the lock of the trial's folder."""
    known = study.get_trials(deepcopy=False)[trial.number].intermediate_values  # of a trial that goes on

    def report(step: int, scores: dict[str, dict[str, float]]) -> bool:
        value = pick(search, scores)
        if step not in known:
            trial.report(value, step)
        return search.pruner != "none" and bool(trial.should_prune())

    began, value, error = time.perf_counter(), None, None
    trial.set_user_attr("host", platform.node())
    trial.set_user_attr("run", str(run.absolute()))
    try:
        results = train(search.trial(trial), search.workdir, report=report)
        if results["stopped"] not in (None, "report"):
            return results["stopped"]
        if results["stopped"] is None:
            value = pick(search, results["evals"])
            report(results["step"], results["evals"])
    except WrongMetric:
        raise
    except (UserError, jax.errors.JaxRuntimeError) as caught:
        begun = (run / "metrics.jsonl").exists() or any(t.state.is_finished() for t in study.get_trials())
        if isinstance(caught, UserError) and not begun:
            raise  # a mistake in the experiment, not in the values
        error = " ".join(str(caught).split())[:300]
    trial.set_user_attr("seconds", time.perf_counter() - began)
    tell(study, trial, value, error)
    return None


def pick(search: Search, scores: dict[str, dict[str, float]]) -> float:
    """The number that is searched for."""
    name, _, score = search.metric.partition("/")
    if score not in scores[name]:
        raise WrongMetric(f"--metric {search.metric}: {name} has no {score!r}; it has {', '.join(scores[name])}")
    return scores[name][score]


def tell(study: Any, trial: Any, value: float | None, error: str | None) -> None:
    from optuna.trial import TrialState

    if value is not None and not math.isfinite(value):
        error = f"the metric is {value}"
    if error is not None:
        trial.set_user_attr("error", error)
        study.tell(trial, state=TrialState.FAIL)
    elif value is None:
        study.tell(trial, state=TrialState.PRUNED)  # with the value reported last
    else:
        study.tell(trial, value)


def say(search: Search, study: Any, number: int) -> None:
    """One line on a finished trial."""
    trial = study.get_trials(deepcopy=False)[number]
    result = trial.user_attrs.get("error", f"{search.metric} {trial.value:.4f}" if trial.value is not None else "")
    leader = best(study)
    record = "" if leader is None else f"; best {leader.value:.4f}, trial {leader.number}"
    print(
        f"{search.run_name(number)}: {trial.state.name.lower()}: {result}{record}: "
        + " ".join(arguments(search.space, trial.params)),
        flush=True,
    )


def best(study: Any) -> Any | None:
    """The best complete trial, None if there is none."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return min(done, key=lambda trial: sign * trial.value, default=None)


def remove_checkpoints(search: Search, study: Any) -> None:
    """Of finished trials other than the best, whose logs and results stay: a checkpoint holds a model three times."""
    leader = best(study)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and (leader is None or trial.number != leader.number):
            shutil.rmtree(search.workdir / search.run_name(trial.number) / "checkpoints", ignore_errors=True)


# -- trials that did not finish ---------------------------------------------------------------------------------------


def set_state(storage: Any, study: Any, number: int, state: str) -> bool:
    """Makes a trial RUNNING, or WAITING: any process that asks for one then gets it, with the values it has.

    Returns whether it could: a finished trial stays as it is.
    """
    optuna = import_optuna()
    known = storage.get_study_id_from_name(study.study_name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(known, number)
    try:
        storage.set_trial_state_values(trial_id, optuna.trial.TrialState[state])
    except optuna.exceptions.UpdateFinishedTrialError:
        return False
    return True


def release_dead(search: Search, study: Any, storage: Any) -> None:
    """Lets any process have the trials that the database calls running although no process runs them."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name != "RUNNING":
            continue
        own = search.workdir / search.run_name(trial.number)
        runs = {own.resolve(), Path(trial.user_attrs.get("run", own)).resolve()}  # of this --workdir, and of its own
        with contextlib.ExitStack() as held, contextlib.suppress(Unfinished):
            for run in filter(Path.exists, runs):
                held.enter_context(lock(run / ".lock", "", wait=False))
            if may_be_dead(trial, search.take_over):
                set_state(storage, study, trial.number, "WAITING")


def may_be_dead(trial: Any, take_over: bool) -> bool:
    """Of a trial whose lock nobody holds, or whose lock cannot be seen from here."""
    if "run" not in trial.user_attrs:  # died before it had its lock, or is about to take it
        return trial.datetime_start < datetime.now() - timedelta(minutes=1)
    return take_over or trial.user_attrs["host"] == platform.node()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM raises, as Ctrl-C does; a run under way catches both by itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
