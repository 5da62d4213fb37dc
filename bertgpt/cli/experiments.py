"""Finding experiments, and the fields of theirs that a command line sets.

An experiment is named by its path below `bertgpt.experiments` (demo/pretrain), by its module, or by the path of a file.
`:ARM` after it picks one arm.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import bertgpt.experiments
from bertgpt.cli.options import print_fields
from bertgpt.config import Experiment, missing_part
from bertgpt.overrides import is_flag, parse_overrides
from bertgpt.types import UserError

if TYPE_CHECKING:
    from bertgpt.inference.model import Model

FIELDS = (
    "Any field of the experiment can follow as a flag, e.g. --steps 1000 --optim.lr 3e-4; `bertgpt train EXPERIMENT\n"
    "--help` lists them. With several experiments, --NAME/FIELD sets it for the one of that name only."
)


class Found(NamedTuple):
    """One file of experiments in `bertgpt.experiments`."""

    name: str
    """its path below the package, without .py"""
    module: str
    title: str
    """first line of its docstring"""


def find_all() -> Iterator[Found]:
    """All experiment files that come with bertgpt, by name. Imports none of them."""
    for root in map(Path, bertgpt.experiments.__path__):
        for path in sorted(root.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            targets = (node.targets for node in tree.body if isinstance(node, ast.Assign))
            names = {target.id for found in targets for target in found if isinstance(target, ast.Name)}
            names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            if names & {"experiment", "ARMS"}:
                parts = path.relative_to(root).with_suffix("").parts
                title = (ast.get_docstring(tree) or "").partition("\n")[0]
                yield Found("/".join(parts), ".".join((bertgpt.experiments.__name__, *parts)), title)


def load_experiments(name: str) -> list[Experiment]:
    """The experiments of a file or module: its `ARMS` (or the one after the colon), else its `experiment()`.

    Raises:
      UserError: there is no such file, module or arm, it defines neither, or it fails; the message names the line.
    """
    source, _, arm = name.partition(":")
    content = vars(import_source(source))
    make, arms = content.get("experiment"), content.get("ARMS")
    if make is not None and not arm:
        return [checked(call_without_arguments(make, source), f"{source}: experiment()")]
    if not arms:
        raise UserError(f"{source}: defines no {'ARMS' if arm else 'experiment() and no ARMS'}")
    if not isinstance(arms, Mapping) or not all(isinstance(key, str) for key in arms):
        raise UserError(f"{source}: ARMS must be a dict of names and experiments, not {type(arms).__name__}")
    if arm and arm not in arms:
        raise UserError(f"{source}: has no arm {arm!r}; it has {', '.join(arms)}")
    return [checked(arms[key], f"{source}: ARMS[{key!r}]") for key in ([arm] if arm else arms)]


def checked(value: object, where: str) -> Experiment:
    """The value, which must be an experiment with all that training needs.

    Raises:
      UserError: it is none.
    """
    if not isinstance(value, Experiment):
        raise UserError(f"{where} is {type(value).__name__}, not an Experiment")
    if field := missing_part(value):
        raise UserError(f"{where}: {field}=None; an experiment needs one")
    return value


def call_without_arguments(make: object, source: str) -> object:
    """What `experiment()` of a file returns. Errors: as `errors_of`, and if it is no function or needs arguments."""
    if not callable(make):
        raise UserError(f"{source}: experiment is {type(make).__name__}, not a function")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise UserError(f"{source}: experiment() is called without arguments, but is {error}") from None
    with errors_of(source):
        return make()


@contextlib.contextmanager
def errors_of(source: str) -> Iterator[None]:
    """Turns whatever the code of an experiment raises into a UserError of one line that names file and line.

    A mistake in a config, which is a UserError already, keeps its words. `--traceback` shows where it was raised.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or source}:{error.lineno or 1}: {error.msg}") from error
    except BaseException as error:  # SystemExit is none of Exception
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
        stem = Path(source.removesuffix(".py").replace(".", "/")).stem
        place = [frame for frame in frames if Path(frame.filename).stem == stem] or frames
        text = " ".join(str(error).split())
        if isinstance(error, SystemExit):
            text = f"calls exit({error.code!r})"
        elif not isinstance(error, UserError):
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise UserError(f"{place[-1].filename}:{place[-1].lineno}: {text}") from error


def load_one(name: str) -> Experiment:
    """As `load_experiments`, where one is wanted.

    Raises:
      UserError: also if there are several.
    """
    experiments = load_experiments(name)
    if len(experiments) > 1:
        names = ", ".join(experiment.name for experiment in experiments)
        raise UserError(f"{name}: has several arms ({names}); name one, {name}:ARM")
    return experiments[0]


def import_source(source: str) -> ModuleType:
    """The module that a name stands for; a file of `bertgpt.experiments` always under its name in that package.

    Its types can then be rebuilt from experiment.json in another process.

    Raises:
      UserError: there is no such module or file, or it fails; the message names the line.
    """
    for root in (Path.cwd(), *(p.parent for p in Path(source).absolute().parents if p.name == "experiments")):
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))  # so that experiment files can import each other
    path = find_file(source)
    module = find_module(source) if path is None else packaged(path)
    with errors_of(source):
        if module is not None:
            return importlib.import_module(module)
        spec = importlib.util.spec_from_file_location(f"bertgpt_experiment_{path.stem}", path)
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
        return loaded


def find_file(source: str) -> Path | None:
    """The file that a path names: as it stands, without .py, or below `bertgpt.experiments`; None for a module's name.

    Raises:
      UserError: there is none.
    """
    written = source if source.endswith(".py") else f"{source}.py"
    inside = written.removeprefix("experiments/")
    roots = map(Path, bertgpt.experiments.__path__)
    for path in (Path(written), *(root / inside for root in roots)):
        if path.is_file():
            return path
    if Path(source).is_file():
        raise UserError(f"{source}: is not a Python file, whose name ends in .py")
    if source.endswith(".py") or "/" in source:
        raise UserError(f"{source}: no such file{similar(inside)}")
    return None


def packaged(path: Path) -> str | None:
    """The name of the module in `bertgpt.experiments` that a file is; None for another file."""
    for root in bertgpt.experiments.__path__:
        if path.resolve().is_relative_to(Path(root).resolve()):
            parts = path.resolve().relative_to(Path(root).resolve()).with_suffix("").parts
            return ".".join((bertgpt.experiments.__name__, *parts))
    return None


def find_module(source: str) -> str:
    """The name of the module that a name without a file stands for.

    Raises:
      UserError: there is none, or a package that it lies in fails.
    """
    name = f"bertgpt.{source}" if source.startswith("experiments.") else source
    found = None
    with errors_of(source), contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"{source}: no such experiment file or module{similar(name.replace('.', '/'))}")
    return name


def similar(name: str) -> str:
    """A hint for a name whose last part is an experiment's."""
    last = name.removesuffix(".py").rpartition("/")[2]
    near = [found.name for found in find_all() if found.name.rpartition("/")[2] == last]
    return f"; did you mean {near[0]}?" if near else ""


def data_file(path: str) -> str:
    """A file as named, or below bertgpt.experiments.finetune, where spaces/*.toml lie."""
    roots = [Path(root) / "finetune" for root in bertgpt.experiments.__path__]
    roots += [root.parent.parent for root in roots]
    inside = [root / path for root in roots if (root / path).is_file()]
    return path if Path(path).exists() or not inside else str(inside[0])


# -- fields -----------------------------------------------------------------------------------------------------------


def with_fields(experiments: Sequence[Experiment], flags: Sequence[str]) -> list[Experiment]:
    """The experiments with what the flags set; names must stay different.

    Raises:
      UserError: an unknown field or experiment, a value that does not fit, or two experiments of one name.
    """
    check_names(experiments)
    own = overrides_by_name(flags, [item.name for item in experiments])
    changed = [parse_overrides(item, own[item.name]) for item in experiments]
    check_names(changed)
    return changed


def overrides_by_name(overrides: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """For each experiment, the overrides that it gets: all but those that `--NAME/field value` gives to another.

    Raises:
      UserError: no experiment has that name.
    """
    given: dict[str, list[str]] = {name: [] for name in names}
    receivers = list(names)
    for arg in overrides:
        if is_flag(arg):
            scope, slash, field = arg[2:].partition("/")
            scoped = bool(slash) and "=" not in scope
            if scoped and scope not in given:
                raise UserError(f"{arg}: no experiment is named {scope!r}; there are {', '.join(names)}")
            receivers, arg = ([scope], f"--{field}") if scoped else (list(names), arg)
        for name in receivers:
            given[name].append(arg)
    return given


def load_run(path: str, step: int | None, flags: Sequence[str]) -> "Model":
    """The run in a directory, with what the flags set in its experiment.

    Raises:
      UserError: there is no such run or checkpoint, or a flag does not fit.
    """
    from bertgpt.inference.model import load
    from bertgpt.runs.directory import load_experiment
    from bertgpt.runs.mirror import open_copy

    local = open_copy(path)
    experiment = parse_overrides(load_experiment(local), flags)
    return load(local, step, experiment=experiment, arrange="training")


def check_names(experiments: Sequence[Experiment]) -> None:
    """Raises UserError if two experiments have one name."""
    seen = set()
    for experiment in experiments:
        if experiment.name in seen:
            raise UserError(f"two experiments are named {experiment.name!r}; they would share a folder")
        seen.add(experiment.name)


def describe_fields(names: Sequence[str]) -> None:
    """Prints the fields of the first experiment: what `bertgpt train EXPERIMENT --help` shows after the options."""
    experiment = load_experiments(names[0])[0]
    print(f"\nFields of {experiment.name}:\n")
    print_fields(type(experiment), experiment, f"bertgpt train {names[0]}")
