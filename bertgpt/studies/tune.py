"""Hyperparameter search: Optuna proposes values of an experiment's fields, and each trial is a run with them.

The study is stored in a database, so any number of machines can work on it, and running the same command again resumes
it. Proposals are a function of the seed, the number of the trial and the finished trials, so an interrupted search
proposes what it would have proposed without the interruption. Needs the extra [tune].

Unfinished trials return to Optuna's queue of waiting trials under their own number. Optuna's heartbeat and
`RetryHeartbeatStaleTrialCallback` are not used: they mark a dead trial as failed and queue a copy with another number,
so that it would lose its checkpoint and its place in the order of proposals, and only after a grace period, whereas a
lock on the run directory shows at once whether a process of the same machine is alive. They also run only within
`Study.optimize`, which records Ctrl-C as a failure.
"""

import contextlib
import math
import platform
import signal
import threading
import time
import types
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from bertgpt.io.directories import make_directory
from bertgpt.io.files import remove_tree
from bertgpt.io.locks import lock
from bertgpt.io.retry import Unfinished
from bertgpt.studies.results import flatten
from bertgpt.studies.search import Search
from bertgpt.studies.space import arguments
from bertgpt.training.loop import train
from bertgpt.types import UserError

if TYPE_CHECKING:
    import optuna


# Trials that are proposed at random and run to their end before TPE and the pruners use them. With TPE's default of ten
# a study of a dozen trials would be a random search.
STARTUP = 5
# Seconds to wait after the study has offered a trial that another process is training.
PAUSE = 1.0


class WrongMetric(UserError):
    """The evaluation does not report the metric, so no trial can succeed."""


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of a training run, which handles the signal itself."""


def import_optuna() -> types.ModuleType:
    """Optuna, without its log lines.

    Raises:
      UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'bertgpt[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_study(search: Search) -> tuple["optuna.Study", "optuna.storages.RDBStorage"]:
    """The Optuna study of a resolved search, and its storage. A new study tries the experiment's own values first.

    Raises:
      UserError: the storage cannot be opened, or its study has another definition; the message lists the differences.
    """
    optuna = import_optuna()
    make_directory(search.workdir)
    waiting = {"connect_args": {"timeout": 60}} if search.storage.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(search.storage, engine_kwargs=waiting)
    except Exception as error:  # SQLAlchemy and the drivers raise many types; the URL may hold a password
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--storage: cannot be opened: {line}") from None

    def load() -> "optuna.Study":
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
    if changed:  # no trial of the other definition was ever started
        optuna.delete_study(study_name=search.study, storage=storage)
        study = load()
    if "definition" not in study.user_attrs:
        study.set_user_attr("definition", definition)
        own = {part.path: part.default for part in search.space}
        if None not in own.values():
            study.enqueue_trial(own, skip_if_exists=True)
    study.pruner = make_pruner(search)
    return study, storage


def make_pruner(search: Search) -> "optuna.pruners.BasePruner":
    """The Optuna pruner of a resolved search."""
    optuna = import_optuna()
    experiment = search.experiment
    if search.pruner == "median":
        # In the first third, warm-up of the learning rate and chance decide which trial is ahead.
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=experiment.steps // 3)
    if search.pruner == "hyperband":
        ends = [end for part in search.space if part.path == "steps" for end in (*part.choices, part.high)]
        longest = max(map(int, [experiment.steps, *ends]))
        return optuna.pruners.HyperbandPruner(min_resource=experiment.eval_every, max_resource=longest)
    return optuna.pruners.NopPruner()


def make_sampler(seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """TPE (Bergstra et al. 2011), seeded by the number of the trial so that a restart changes nothing."""
    optuna = import_optuna()
    state = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=state)


def tune(search: Search) -> tuple["optuna.Study", str | None]:
    """Runs or resumes a search until its study has `search.trials` trials.

    A trial that diverges or runs out of memory counts as failed, and the search continues. A trial that was stopped, or
    whose process died, resumes from its checkpoint when the search is resumed.

    Returns:
      The Optuna study, and the name of the signal that ended the search early, or None.

    Raises:
      UserError: see `Search.resolve` and `open_study`; or no trial can be set up.
    """
    search = search.resolve()
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


def run_trial(
    search: Search, study: "optuna.Study", storage: "optuna.storages.RDBStorage", trial: "optuna.Trial"
) -> str | None:
    """Trains one trial and reports it to the study. Returns the name of the signal that stopped it, if any.

    A trial that does not finish, for whatever reason, returns to the queue for any process. A trial that another
    process is training or has finished is left alone: two processes may find the trial of a dead one at the same time.
    """
    run = search.workdir / search.run_name(trial.number)
    make_directory(run)
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
        print_trial(search, study, trial.number)
        if not search.keep_checkpoints:
            remove_checkpoints(search, study)
    return stopped


def train_trial(search: Search, study: "optuna.Study", trial: "optuna.Trial", run: Path) -> str | None:
    """The part of `run_trial` that needs the lock on the run directory."""
    known = study.get_trials(deepcopy=False)[trial.number].intermediate_values  # reported before a trial was resumed

    def report(step: int, scores: dict[str, dict[str, float]]) -> bool:
        value = pick(search, scores)
        if step not in known:
            trial.report(value, step)
        return search.pruner != "none" and bool(trial.should_prune())

    began, value, error = time.perf_counter(), None, None
    if "run" not in trial.user_attrs:  # what was there before this study is not removed with the trial
        trial.set_user_attr("run_existed", (run / "experiment.json").exists())
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
            raise  # the experiment is wrong, not the proposed values
        error = " ".join(str(caught).split())[:300]
    trial.set_user_attr("seconds", time.perf_counter() - began)
    tell(study, trial, value, error)
    return None


def pick(search: Search, scores: dict[str, dict[str, float]]) -> float:
    """The value of the metric to optimise."""
    name, _, score = search.metric.partition("/")
    if score not in scores[name]:
        raise WrongMetric(f"--metric {search.metric}: {name} has no {score!r}; it has {', '.join(scores[name])}")
    return scores[name][score]


def tell(study: "optuna.Study", trial: "optuna.Trial", value: float | None, error: str | None) -> None:
    """Reports a finished trial to the study: failed with an error, pruned without a value, else complete."""
    from optuna.trial import TrialState

    if value is not None and not math.isfinite(value):
        error = f"the metric is {value}"
    if error is not None:
        trial.set_user_attr("error", error)
        study.tell(trial, state=TrialState.FAIL)
    elif value is None:
        study.tell(trial, state=TrialState.PRUNED)  # its value is the last one reported
    else:
        study.tell(trial, value)


def print_trial(search: Search, study: "optuna.Study", number: int) -> None:
    """Prints one line about a finished trial."""
    trial = study.get_trials(deepcopy=False)[number]
    result = trial.user_attrs.get("error", f"{search.metric} {trial.value:.4f}" if trial.value is not None else "")
    leader = best(study)
    record = "" if leader is None else f"; best {leader.value:.4f}, trial {leader.number}"
    print(
        f"{search.run_name(number)}: {trial.state.name.lower()}: {result}{record}: "
        + " ".join(arguments(search.space, trial.params)),
        flush=True,
    )


def ranked(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """The complete trials, best first."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return sorted(done, key=lambda trial: sign * trial.value)


def best(study: "optuna.Study") -> "optuna.trial.FrozenTrial | None":
    """The best complete trial; None if there is none."""
    return next(iter(ranked(study)), None)


def remove_checkpoints(search: Search, study: "optuna.Study") -> None:
    """Removes the checkpoints of finished trials except the best; a checkpoint is three times the size of a model."""
    leader = best(study)
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get("run_existed") is not False:
            continue
        if trial.state.is_finished() and (leader is None or trial.number != leader.number):
            remove_tree(search.workdir / search.run_name(trial.number) / "checkpoints")


# -- unfinished trials ------------------------------------------------------------------------------------------------


def set_state(storage: "optuna.storages.RDBStorage", study: "optuna.Study", number: int, state: str) -> bool:
    """Sets the state of an unfinished trial: RUNNING, or WAITING, so that any process can take it with its values.

    Returns:
      Whether it was set; the state of a finished trial does not change.
    """
    optuna = import_optuna()
    known = storage.get_study_id_from_name(study.study_name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(known, number)
    try:
        storage.set_trial_state_values(trial_id, optuna.trial.TrialState[state])
    except optuna.exceptions.UpdateFinishedTrialError:
        return False
    return True


def release_dead(search: Search, study: "optuna.Study", storage: "optuna.storages.RDBStorage") -> None:
    """Returns trials to the queue that are running according to the database although no process trains them."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name != "RUNNING":
            continue
        own = search.workdir / search.run_name(trial.number)
        runs = {
            own.resolve(),
            Path(trial.user_attrs.get("run", own)).resolve(),
        }  # under this --workdir, and where it began
        with contextlib.ExitStack() as held, contextlib.suppress(Unfinished):
            for run in filter(Path.exists, runs):
                held.enter_context(lock(run / ".lock", "", wait=False))
            if may_be_dead(trial, search.take_over):
                set_state(storage, study, trial.number, "WAITING")


def may_be_dead(trial: "optuna.trial.FrozenTrial", take_over: bool) -> bool:
    """Whether a running trial may have no process, if its lock is free or not visible from this machine."""
    if "run" not in trial.user_attrs:  # its process died before it took the lock, or is about to take it
        return trial.datetime_start < datetime.now() - timedelta(minutes=1)
    return take_over or trial.user_attrs["host"] == platform.node()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` within this context, as Ctrl-C raises; a training run handles both by itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: types.FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
