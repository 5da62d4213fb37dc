"""The `bertgpt` command. Flags, signals and process exit codes live here and nowhere else.

Exit codes: 0 done (or stopped by SIGTERM with everything saved), 2 a mistake in what was asked, 130 stopped by Ctrl-C.
"""

import argparse
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bertgpt.cli.commands import add_commands
from bertgpt.config import Experiment, parse_overrides
from bertgpt.types import UserError

EPILOG = """\
EXPERIMENT is a Python file or module that defines `experiment()` or `ARMS`; FILE.py:ARM picks one arm, FILE.py alone
runs them all. Any field of the experiment can follow, e.g. --steps 1000 --optim.lr 3e-4; add --help to see them.
Of several experiments all get it, or --NAME/field only the one of that name.
A run that was stopped goes on when the same command is given again."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line each."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("bertgpt").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of everything that is as it should be
    try:
        return run_command(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"bertgpt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bertgpt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(argv: list[str]) -> int:
    if argv[:1] == ["train"]:
        return train_command(argv[1:])
    parser = Parser(
        prog="bertgpt", description="Pretrain, fine-tune and use language models in JAX.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="run one or several experiments, in order")

    add_commands(commands)
    argv, beam_flags = take_rest(argv) if argv[:1] == ["prepare"] else (argv, [])
    args, fields = parser.parse_known_args(argv)
    if fields and not hasattr(args, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    args.overrides = fields
    if args.command == "train":
        return train_command([])
    if beam_flags:
        args.beam_flags = beam_flags
    return args.call(args)


def take_rest(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before the first “--”, and those after it."""
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


# -- train ------------------------------------------------------------------------------------------------------------


def train_command(argv: list[str]) -> int:
    """bertgpt train EXPERIMENT... [--workdir DIR] [--stop_after N] [--dotted.field value ...]"""
    argv, workdir = take_option(argv, "workdir", "runs")
    argv, stop_after = take_option(argv, "stop_after", None)
    first_option = next((i for i, arg in enumerate(argv) if arg.startswith("-")), len(argv))
    names, overrides = argv[:first_option], argv[first_option:]
    if not names:
        if "--help" in overrides or "-h" in overrides:
            print(
                f"usage: bertgpt train EXPERIMENT... [--workdir DIR] [--stop_after N] [--FIELD VALUE ...]\n\n{EPILOG}"
            )
            return 0
        raise UserError("bertgpt train: name an experiment first, e.g. bertgpt train experiments/demo/pretrain.py")
    if stop_after is not None and not (stop_after.isdigit() and int(stop_after) > 0):
        raise UserError(f"--stop_after {stop_after!r} must be a positive whole number")
    loaded = [item for name in names for item in load_experiments(name)]
    own = overrides_by_name(overrides, [item.name for item in loaded])
    experiments = [parse_overrides(item, own[item.name]) for item in loaded]
    check_names(experiments)
    use_compile_cache(Path(workdir))

    from bertgpt.training.loop import train

    results = []
    for experiment in experiments:
        results.append(train(experiment, workdir, stop_after=None if stop_after is None else int(stop_after)))
        stopped = results[-1]["stopped"]
        if stopped:
            step = results[-1]["step"]
            print(f"{experiment.name}: stopped by {stopped} after step {step:,}, saved. The same command goes on.")
            return 130 if stopped == "SIGINT" else 0
    summarise(experiments, Path(workdir))
    return 0


def overrides_by_name(overrides: list[str], names: Sequence[str]) -> dict[str, list[str]]:
    """For each experiment, the overrides that it gets: all but those that `--NAME/field value` gives to another.

    Raises:
      UserError: no experiment has that name.
    """
    given: dict[str, list[str]] = {name: [] for name in names}
    receivers = list(names)
    for arg in overrides:
        if arg.startswith("--"):
            scope, slash, field = arg[2:].partition("/")
            scoped = bool(slash) and "=" not in scope
            if scoped and scope not in given:
                raise UserError(f"{arg}: no experiment is named {scope!r}; there are {', '.join(names)}")
            receivers, arg = ([scope], f"--{field}") if scoped else (list(names), arg)
        for name in receivers:
            given[name].append(arg)
    return given


def take_option(argv: list[str], name: str, default: str | None) -> tuple[list[str], str | None]:
    """Takes `--name value` or `--name=value` out of the arguments; dashes may stand for underscores."""
    rest, value = [], default
    items = iter(argv)
    for item in items:
        flag, equals, given = item.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            value = given if equals else next(items, None)
            if value is None:
                raise UserError(f"{flag} needs a value")
        else:
            rest.append(item)
    return rest, value


def load_experiments(name: str) -> list[Experiment]:
    """The experiments of a file or module: its `ARMS` (or the one after the colon), else its `experiment()`.

    Raises:
      UserError: there is no such file, module or arm, or it defines neither.
    """
    source, _, arm = name.partition(":")
    module = import_source(source)
    if arm or not hasattr(module, "experiment"):
        arms = getattr(module, "ARMS", None)
        if not arms:
            raise UserError(f"{source}: defines no {'ARMS' if arm else 'experiment() and no ARMS'}")
        if arm and arm not in arms:
            raise UserError(f"{source}: has no arm {arm!r}; it has {', '.join(arms)}")
        return [arms[arm]] if arm else list(arms.values())
    return [module.experiment()]


def import_source(source: str) -> Any:
    for root in (Path.cwd(), *(p.parent for p in Path(source).absolute().parents if p.name == "experiments")):
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))  # so that experiment files can import each other
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise UserError(f"{source}: no such file")
        spec = importlib.util.spec_from_file_location(f"bertgpt_experiment_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
    else:
        try:
            found = importlib.util.find_spec(source)
        except (ImportError, ValueError):
            found = None
        if found is None or found.origin is None:
            raise UserError(f"{source}: no such experiment file or module")
        return importlib.import_module(source)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{source}:{error.lineno}: {error.msg}") from None
    return module


def check_names(experiments: Sequence[Experiment]) -> None:
    seen = set()
    for experiment in experiments:
        if experiment.name in seen:
            raise UserError(f"two experiments are named {experiment.name!r}; they would share a folder")
        seen.add(experiment.name)


def use_compile_cache(workdir: Path) -> None:
    """Compiled programs are kept, so that a run that goes on starts at once."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "cache" / "compiled").absolute()))


def summarise(experiments: Sequence[Experiment], workdir: Path) -> None:
    """Prints tables of all results and some predictions, and writes the report."""
    from bertgpt.inference.predict import example_predictions
    from bertgpt.studies.report import comparison, overview, read_run, report, verdicts
    from bertgpt.training.log import print_table

    paths = [workdir / experiment.name for experiment in experiments]
    records = [read_run(path) for path in paths]
    for table in (overview(records), *comparison(records)):
        print()
        print_table(*table)
    print()
    for line in verdicts(records):
        print(line)
    examples = [line for path in paths[-1:] for line in example_predictions(path)]
    if examples:
        print(f"\nWhat {experiments[-1].name} says of test texts:")
        for line in examples:
            print(f"  {line}")
    try:
        written = report(paths, workdir / "report")
        print(f"\nreport: {written[-1]}")
    except UserError as error:  # without the extra [plot]; the results are complete without pictures
        print(f"\nno report: {error}")
