"""Search for good settings of an experiment on its validation data."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bertgpt.cli.experiments import FIELDS, data_file, describe_fields, load_one, with_fields
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.ranges import Count
from bertgpt.runs.compiler import use_compile_cache
from bertgpt.training.terminal import lasting_output
from bertgpt.types import UserError

if TYPE_CHECKING:
    import optuna

    from bertgpt.studies.search import Search

WORKDIR = "runs"


@dataclasses.dataclass(frozen=True)
class Options:
    """Search for good settings of an experiment on its validation data. The same command resumes it."""

    experiment: Positional[str]
    """name from `bertgpt list`, file or module; NAME:ARM for one arm"""
    space: str
    """TOML file: field = {low, high, log, step} or {choices}; spaces/encoder.toml comes with bertgpt"""
    trials: Count
    """total number, including those of earlier calls"""
    metric: str | None = None
    """EVALUATION/METRIC to optimise, e.g. validation/accuracy (None: the experiment's best_metric)"""
    direction: Literal["minimize", "maximize"] | None = None
    """None: what is better for this metric"""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """what stops bad trials early"""
    storage: str | None = None
    """database URL, for several machines (None: the file WORKDIR/study.db)"""
    study: str | None = None
    """name in the storage, and of the trials (None: the experiment's)"""
    workdir: str = WORKDIR
    """folder of the trials"""
    take_over: bool = False
    """also resume unfinished trials of other machines; only if none of them works on the study any more"""
    keep_checkpoints: bool = False
    """keep the checkpoints of all trials, not only of the best"""
    fields: Fields = ()


@lasting_output()
def run(options: Options) -> int:
    from bertgpt.studies.search import Search
    from bertgpt.studies.space import read_space
    from bertgpt.studies.tune import tune

    (experiment,) = with_fields([load_one(options.experiment)], options.fields)
    search = Search(
        experiment,
        read_space(data_file(options.space), experiment),
        options.trials,
        workdir=Path(options.workdir),
        study=options.study,
        storage=options.storage,
        pruner=options.pruner,
        metric=options.metric,
        direction=options.direction,
        take_over=options.take_over,
        keep_checkpoints=options.keep_checkpoints,
    ).resolve()
    use_compile_cache(search.workdir)
    study, stopped = tune(search)
    if stopped:
        print(f"{search.study}: stopped by {stopped}, saved. The same command resumes it.")
        return 130 if stopped == "SIGINT" else 0
    return show_study(search, study, [options.experiment, *options.fields])


def show_study(search: "Search", study: "optuna.Study", given: Sequence[str]) -> int:
    """Prints the best trials and writes the report.

    Args:
      search: what was searched for.
      study: the Optuna study.
      given: the experiment and its fields as given on the command line.

    Returns:
      The exit code, 1 if no trial is complete.
    """
    from bertgpt.studies.study_report import summary, trial_rows, write_study
    from bertgpt.studies.tune import ranked
    from bertgpt.training.log import print_table

    done = ranked(study)
    command = best_command(search, done[0], given) if done else ""
    print()
    print_table("best trials", *trial_rows(search, done[:10]))
    for line in summary(search, study):
        print(line)
    if done:
        print(f"\nto run the best settings with several seeds and on test data: {command}")
    try:
        print(f"\nreport: {write_study(search, study, command)[-1]}")
    except UserError as error:  # without matplotlib; the study is complete without pictures
        print(f"\nno report: {error}")
    return 0 if done else 1


def best_command(search: "Search", trial: "optuna.trial.FrozenTrial", given: Sequence[str]) -> str:
    """The command that runs a trial's settings with seeds that the search has not used, under a name of its own."""
    from bertgpt.studies.space import arguments

    seeds = ",".join(str(search.experiment.seed + i) for i in (1, 2, 3))
    own = ["--name", f"{search.study}.best{trial.number}", "--seeds", seeds]
    words = ["bertgpt", "sweep", *given, *arguments(search.space, trial.params), *own]
    return shlex.join(words + ([] if search.workdir == Path(WORKDIR) else ["--workdir", str(search.workdir)]))


SEED = "--seed is the experiment's seed and that of the search."
COMMAND = Command(Options, run, epilog=f"{SEED}\n{FIELDS}", describe=describe_fields)
