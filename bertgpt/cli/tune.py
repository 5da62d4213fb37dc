"""`bertgpt tune` and `bertgpt sweep`: their flags, and what they do. Heavy modules are imported when needed."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertgpt.config import Experiment, parse_overrides
from bertgpt.types import UserError

FIELDS = (
    " Any field of the experiment can follow, e.g. --steps 1000 (bertgpt train EXPERIMENT --help lists them)."
    " The same command goes on with what was stopped."
)
WORKDIR = "runs"


def add_tune_commands(commands: Any) -> None:
    """Both take fields of experiments too, which the caller leaves in `overrides`."""
    command = commands.add_parser(
        "tune",
        allow_abbrev=False,
        help="search for good settings of an experiment on its validation data",
        epilog=f"--seed, the experiment's, is that of the search too.{FIELDS}",
    )
    command.add_argument("experiment", help="Python file or module, or FILE.py:ARM")
    command.add_argument("--space", required=True, help="TOML file: field = {low, high, log, step} or {choices}")
    command.add_argument("--trials", required=True, type=int, help="in all, those of earlier calls included")
    command.add_argument("--metric", help="EVALUATION/METRIC, e.g. validation/accuracy (default: best_metric)")
    command.add_argument("--direction", choices=("minimize", "maximize"), help=(
        "default: minimize what ends in “loss”, “error” or “perplexity”, maximize the rest"
    ))  # fmt: skip
    command.add_argument("--pruner", choices=("median", "hyperband", "none"), default="median", help=(
        "what stops bad trials early (default: %(default)s)"
    ))  # fmt: skip
    command.add_argument("--storage", help="database URL, for many machines (default: the file WORKDIR/study.db)")
    command.add_argument("--study", help="name in the storage, and of the trials (default: the experiment's)")
    command.add_argument("--workdir", default=WORKDIR, help="folder of the trials (default: %(default)s)")
    command.add_argument("--take_over", action="store_true", help=(
        "go on with the unfinished trials of other machines too; only when none works on the study any more"
    ))  # fmt: skip
    command.add_argument("--keep_checkpoints", action="store_true", help="of all trials, not only of the best")
    command.set_defaults(call=tune_command, overrides=[])

    command = commands.add_parser(
        "sweep",
        allow_abbrev=False,
        help="run the arms of experiments with several seeds, and compare them",
        epilog=f"Arms that fail are named at the end; the others run all the same.{FIELDS}"
        " Of several experiments all get a field, or --NAME/field only the one of that name.",
    )
    command.add_argument("experiments", nargs="+", metavar="experiment", help="Python file or module, or FILE.py:ARM")
    command.add_argument("--seeds", help="e.g. 0,1,2: run every arm with each (default: the arms as they are)")
    command.add_argument("--workdir", default=WORKDIR, help="folder of the runs (default: %(default)s)")
    command.set_defaults(call=sweep_command, overrides=[])


def tune_command(args: argparse.Namespace) -> int:
    from bertgpt.cli.main import load_experiments, overrides_by_name, use_compile_cache
    from bertgpt.studies.search import Search
    from bertgpt.studies.space import read_space
    from bertgpt.studies.tune import tune

    experiments = load_experiments(args.experiment)
    if len(experiments) > 1:
        names = ", ".join(experiment.name for experiment in experiments)
        raise UserError(f"{args.experiment}: has several arms ({names}); name one, FILE.py:ARM")
    own = overrides_by_name(args.overrides, [experiments[0].name])
    experiment = parse_overrides(experiments[0], own[experiments[0].name])
    search = Search(
        experiment,
        read_space(args.space, experiment),
        args.trials,
        Path(args.workdir),
        args.study,
        args.storage,
        args.pruner,
        args.metric,
        args.direction,
        args.take_over,
        args.keep_checkpoints,
    ).resolve()
    use_compile_cache(search.workdir)
    study, stopped = tune(search)
    if stopped:
        print(f"{search.study}: stopped by {stopped}, saved. The same command goes on.")
        return 130 if stopped == "SIGINT" else 0
    return show_study(search, study, [args.experiment, *args.overrides])


def show_study(search: Any, study: Any, given: Sequence[str]) -> int:
    """Prints what was found and writes the page. Returns 1 if no trial is complete.

    Args:
      given: the experiment and its fields as the command line had them.
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
        print(f"\nwith several seeds, and on test data: {command}")
    try:
        print(f"\nreport: {write_study(search, study, command)[-1]}")
    except UserError as error:  # without matplotlib; the study is complete without pictures
        print(f"\nno report: {error}")
    return 0 if done else 1


def best_command(search: Any, trial: Any, given: Sequence[str]) -> str:
    """The command that runs a trial's settings with seeds which the search has not used, under a name of their own."""
    from bertgpt.studies.space import arguments

    seeds = ",".join(str(search.experiment.seed + i) for i in (1, 2, 3))
    own = ["--name", f"{search.study}.best{trial.number}", "--seeds", seeds]
    words = ["bertgpt", "sweep", *given, *arguments(search.space, trial.params), *own]
    return shlex.join(words + ([] if search.workdir == Path(WORKDIR) else ["--workdir", str(search.workdir)]))


def sweep_command(args: argparse.Namespace) -> int:
    from bertgpt.cli.main import check_names, load_experiments, overrides_by_name, use_compile_cache
    from bertgpt.studies.sweep import seeded, sweep

    seeds = None if args.seeds is None else read_seeds(args.seeds)
    loaded = [item for name in args.experiments for item in load_experiments(name)]
    check_names(loaded)
    own = overrides_by_name(args.overrides, [item.name for item in loaded])
    given = [parse_overrides(item, own[item.name]) for item in loaded]
    check_names(given)
    experiments = seeded(given, seeds)
    workdir = Path(args.workdir)
    use_compile_cache(workdir)
    swept = sweep(experiments, workdir)
    if swept.stopped:
        print(f"sweep: stopped by {swept.stopped}, saved. The same command goes on.")
        return 130 if swept.stopped == "SIGINT" else 0
    show_sweep(experiments, swept, workdir)
    for name, failure in swept.failures.items():
        print(f"bertgpt: {name} failed: {failure}", file=sys.stderr)
    return int(bool(swept.failures))


def read_seeds(text: str) -> list[int]:
    seeds = text.split(",")
    if not all(seed.strip().isdigit() for seed in seeds) or len({int(seed) for seed in seeds}) < len(seeds):
        raise UserError(f"--seeds {text!r} must be different whole numbers with commas between, e.g. 0,1,2")
    return [int(seed) for seed in seeds]


def show_sweep(experiments: Sequence[Experiment], swept: Any, workdir: Path) -> None:
    """What `train` says of runs, then the arms' means; both go into the report."""
    from bertgpt.cli.main import summarise
    from bertgpt.studies import ablation
    from bertgpt.studies.pages import markdown_table
    from bertgpt.studies.sweep import collect_arms, metrics_of
    from bertgpt.training.log import print_table
    from bertgpt.types import Table

    done = [experiment for experiment in experiments if experiment.name in swept.results]
    if not done:
        return
    summarise(done, workdir)
    arms = collect_arms(experiments, swept.results)
    table = Table("Arms: mean ± standard deviation over seeds", *ablation.arm_table(arms, metrics_of(arms)))
    print()
    print_table(*table)
    out = workdir / "report"
    out.mkdir(parents=True, exist_ok=True)
    failures = [f"- {name} failed: {failure}" for name, failure in swept.failures.items()]
    parts = ["# Sweep", markdown_table(table), *(["\n".join(failures)] if failures else [])]
    parts.append("The runs: [report](report.md)")
    if ablation.compared_metrics([arm for arm in arms if len(arm.seeds) > 1]):
        parts.append("![arms](ablation.png)")
    (out / "sweep.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"\nsweep: {out / 'sweep.md'}")
