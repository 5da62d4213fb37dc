"""Train experiments, one after another, and compare their results."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from bertgpt import distributed
from bertgpt.cli.experiments import FIELDS, describe_fields, load_experiments, with_fields
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.config import Experiment, to_json
from bertgpt.distributed import Distributed
from bertgpt.io.paths import local_path, shown
from bertgpt.ranges import Count
from bertgpt.runs.compiler import use_compile_cache
from bertgpt.training.terminal import lasting_output
from bertgpt.types import EvalResult, Sheet, UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Train experiments, one after another, and compare their results. The same command resumes training."""

    experiments: Positional[tuple[str, ...]]
    """names from `bertgpt list`, files or modules that define `experiment()` or `ARMS`; NAME:ARM for one arm"""
    workdir: str = "runs"
    """folder of the runs; also gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"""
    stop_after: Count | None = None
    """stop and save after this many steps of this call; the schedule stays that of the whole run"""
    accept_changed_inputs: bool = False
    """resume although the tokenizer or the data have changed since a run began"""
    distributed: Distributed = Distributed()
    fields: Fields = ()


@lasting_output()
def run(options: Options) -> int:
    distributed.initialize(options.distributed)
    main = distributed.is_main()
    if not main:
        logging.getLogger("bertgpt").setLevel(logging.ERROR)
    workdir = local_path(options.workdir)
    with distributed.together():
        loaded = [item for name in options.experiments for item in load_experiments(name)]
        experiments = with_fields(loaded, options.fields)
        check_packages(experiments)
        use_compile_cache(workdir)
        stopped, message = train_all(experiments, workdir, options)
    if main and message:
        print(message)
    elif main:
        summarise(experiments, workdir)
    return 130 if stopped == "SIGINT" else 0


def train_all(experiments: Sequence[Experiment], workdir: Path, options: Options) -> tuple[str | None, str]:
    """Trains one experiment after another, until one is stopped.

    Returns:
      What stopped it, and a line about it; (None, "") if all are done.
    """
    from bertgpt.training.loop import train

    for experiment in experiments:
        results = train(
            experiment,
            workdir,
            stop_after=options.stop_after,
            accept_changed_inputs=options.accept_changed_inputs,
            show=functools.partial(write_sheets, workdir / experiment.name),
        )
        if stopped := results["stopped"]:
            when = f"after step {results['step']:,}, saved" if results["step"] else "before the first step"
            return stopped, f"{experiment.name}: stopped by {stopped} {when}. The same command resumes it."
    return None, ""


def write_sheets(run: Path, results: Mapping[str, EvalResult]) -> None:
    """Writes RUN/evaluation, as `bertgpt evaluate` does, if there are pictures to show."""
    from bertgpt.runs.mirror import publish_files
    from bertgpt.studies.evaluation_report import write_evaluations

    if any(isinstance(figure, Sheet) for result in results.values() for figure in result.figures):
        try:
            publish_files(write_evaluations(results, run / "evaluation"))
        except UserError as error:  # without the extra [plot], or with a full disk; training goes on
            logging.getLogger(__name__).warning("no contact sheet: %s", error)


def check_packages(experiments: Sequence[Experiment]) -> None:
    """Looks for every package that an experiment reads from, before the first of them is trained.

    Raises:
      UserError: a package is not installed; the message says how to install it.
    """
    from bertgpt.data.sources.files import inside_package
    from bertgpt.studies.results import flatten

    for experiment in experiments:
        for leaf in flatten(to_json(experiment)).values():
            for path in leaf if isinstance(leaf, list) else [leaf]:
                if isinstance(path, str) and path.startswith("package:"):
                    inside_package(path)


def summarise(experiments: Sequence[Experiment], workdir: Path) -> None:
    """Prints all results in one table and in words, and some predictions, and writes the report."""
    from bertgpt.inference.predict import example_predictions
    from bertgpt.studies.report import report
    from bertgpt.studies.results import read_run
    from bertgpt.studies.verdicts import summary, verdicts
    from bertgpt.training.log import print_table

    paths = [workdir / experiment.name for experiment in experiments]
    records = [read_run(path) for path in paths]
    print()
    print_table(*summary(records))
    print()
    for line in verdicts(records):
        print(line)
    examples = [line for path in paths[-1:] for line in example_predictions(path)]
    if examples:
        print(f"\nPredictions of {experiments[-1].name} for test texts:")
        for line in examples:
            print(f"  {line}")
    try:
        written = report(paths, workdir / "report")
        picture = next(path for path in written if path.name == "report.png")
        print(shown(f"\npicture: {picture}\nreport:  {written[-1]}"))
    except UserError as error:  # without the extra [plot]; the results are complete without pictures
        print(shown(f"\nno report: {error}"))


COMMAND = Command(Options, run, epilog=FIELDS, describe=describe_fields)
