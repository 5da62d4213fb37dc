"""Evaluate a run on its held-out data, or on a labelled file."""

import dataclasses

from bertgpt.cli.experiments import load_run
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.io.files import CannotWrite
from bertgpt.io.paths import local_path, shown
from bertgpt.ranges import Natural


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate a run on its held-out data, or on a labelled file: metrics, tables of classes, confusion matrices."""

    run: Positional[str]
    """directory of the run, or its URL"""
    path: str | None = None
    """file, directory or glob of labelled records to score, all of them (None: the run's own evaluations)"""
    task_name: str | None = None
    """of a run of several tasks, the one to score"""
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""
    out: str | None = None
    """folder for tables and confusion matrices (None: RUN/evaluation)"""
    fields: Fields = ()


def run(options: Options) -> int:
    from bertgpt.inference.predict import on_file, one_task
    from bertgpt.runs.mirror import publish_files
    from bertgpt.studies.evaluation_report import write_evaluations
    from bertgpt.training.evaluate import evaluate
    from bertgpt.training.log import print_table

    model = load_run(options.run, options.step, options.fields)
    model = model if options.task_name is None else one_task(model, options.task_name)
    model = model if options.path is None else on_file(model, options.path)
    results = evaluate(model)
    rows = [
        [f"{name} {metric}", f"{value:.4f}"]
        for name, found in results.items()
        for metric, value in found.values.items()
    ]
    print_table(f"{model.experiment.name} at step {model.step:,}", ["", "value"], rows)
    for name, found in results.items():
        for table in found.tables:
            print_table(f"{name}: {table.title}", table.columns, table.rows)
        for warning in found.warnings:
            print(f"{name}: {warning.text}")
    try:
        written = write_evaluations(results, local_path(options.out or f"{options.run}/evaluation"))
        publish_files(written)
    except CannotWrite as error:
        if options.out is not None:
            raise
        written = [f"{error}; --out FOLDER writes the tables and figures elsewhere"]  # the run is on read-only media
    for path in written:
        print(shown(str(path)))
    return 0


EPILOG = "--data.FIELD VALUE changes how records are read, e.g. --data.text_field body."
COMMAND = Command(Options, run, epilog=EPILOG)
