"""Train the arms of experiments with several seeds, and compare them."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertgpt.cli.experiments import FIELDS, check_names, describe_fields, load_experiments, with_fields
from bertgpt.cli.options import Command, Fields, Positional
from bertgpt.cli.train import summarise
from bertgpt.config import Experiment
from bertgpt.io.paths import local_path, shown
from bertgpt.ranges import Seed, mismatch
from bertgpt.runs.compiler import use_compile_cache
from bertgpt.training.terminal import lasting_output
from bertgpt.types import UserError

if TYPE_CHECKING:
    from bertgpt.studies.sweep import Swept


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the arms of experiments with several seeds, and compare them. The same command resumes it."""

    experiments: Positional[tuple[str, ...]]
    """names from `bertgpt list`, files or modules; NAME:ARM for one arm"""
    seeds: str | None = None
    """e.g. 0,1,2: train every arm with each (None: the arms as they are)"""
    workdir: str = "runs"
    """folder of the runs"""
    fields: Fields = ()


@lasting_output()
def run(options: Options) -> int:
    from bertgpt.studies.sweep import seeded, sweep

    seeds = None if options.seeds is None else read_seeds(options.seeds)
    loaded = [item for name in options.experiments for item in load_experiments(name)]
    experiments = seeded(with_fields(loaded, options.fields), seeds)
    check_names(experiments)
    workdir = local_path(options.workdir)
    use_compile_cache(workdir)
    swept = sweep(experiments, workdir)
    if swept.stopped:
        print(f"sweep: stopped by {swept.stopped}, saved. The same command resumes it.")
        return 130 if swept.stopped == "SIGINT" else 0
    show_sweep(experiments, swept, workdir)
    for name, failure in swept.failures.items():
        print(f"bertgpt: {name} failed: {failure}", file=sys.stderr)
    return int(bool(swept.failures))


def read_seeds(text: str) -> list[int]:
    words = text.split(",")
    seeds = [int(word) for word in words if re.fullmatch(r"\s*[0-9]{1,10}\s*", word)]  # isdigit takes ² for a digit
    if len(set(seeds)) < len(words):
        raise UserError(f"--seeds {text!r} must be different whole numbers with commas between, e.g. 0,1,2")
    for seed in seeds:
        if problem := mismatch(Seed, seed):
            raise UserError(f"--seeds {text!r}: {seed} must {problem}")
    return seeds


def show_sweep(experiments: Sequence[Experiment], swept: "Swept", workdir: Path) -> None:
    """Prints what `train` prints, then the means of the arms over their seeds, and writes both."""
    from bertgpt.runs.mirror import publish_files
    from bertgpt.studies import ablation
    from bertgpt.studies.pages import markdown_table
    from bertgpt.studies.plots import write_files
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
    failures = [f"- {name} failed: {failure}" for name, failure in swept.failures.items()]
    parts = ["# Sweep", markdown_table(table), *(["\n".join(failures)] if failures else [])]
    parts.append("The runs: [report](report.md)")
    if ablation.compared_metrics([arm for arm in arms if len(arm.seeds) > 1]):
        parts.append("![arms](ablation.png)")
    publish_files(write_files(out, {"sweep.md": ("\n\n".join(parts) + "\n").encode()}))
    print(shown(f"\nsweep: {out / 'sweep.md'}"))


EPILOG = "Arms that fail are listed at the end; the others are trained all the same."
COMMAND = Command(Options, run, epilog=f"{EPILOG}\n{FIELDS}", describe=describe_fields)
