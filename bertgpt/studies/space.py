"""The space of a search: the fields of an experiment that vary, and their values, read from a TOML file."""

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bertgpt.config import OPERATIONAL, Experiment, leaves
from bertgpt.overrides import parse_overrides
from bertgpt.types import UserError

if TYPE_CHECKING:
    import optuna


SETTINGS = ("choices", "low", "high", "log", "step")

Value = str | int | float  # bool is an int


class Dimension(NamedTuple):
    """A field of the experiment and its possible values: one of `choices`, or a number from `low` to `high`."""

    path: str
    """dotted path of the field"""
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    """sample uniformly on a logarithmic scale"""
    step: float | None = None
    """distance between values; None: 1 for integers, else any value"""
    whole: bool = False
    """integers only"""
    default: Value | None = None
    """the experiment's own value; None if it is not in the space"""

    def suggest(self, trial: "optuna.Trial") -> Value:
        """The value for an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.path, self.choices)
        if self.whole:
            return trial.suggest_int(self.path, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=self.log)

    def text(self, value: Value) -> str:
        """A value in the form of a command-line argument; sampled floats are rounded to four digits."""
        sampled = isinstance(value, float) and not self.choices and value != self.default
        return f"{value:.4g}" if sampled else str(value)


def read_space(path: str | Path, experiment: Experiment) -> tuple[Dimension, ...]:
    """Reads a TOML file that maps dotted paths to {low, high, log, step} or {choices}.

    Raises:
      UserError: the file cannot be read, or an entry does not fit the experiment; the message names file and key.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    space = []
    for key, entry in entries(content):
        try:
            space.append(dimension(key, entry, experiment))
        except UserError as error:
            raise UserError(f"{path}: {key}: {error}") from None
    if not space:
        raise UserError(f"{path}: names no field to vary")
    return tuple(space)


def entries(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (dotted path, entry). TOML reads `optim.lr = {…}` as nested tables and `["optim.lr"]` as one."""
    for name, value in table.items():
        inner = value if isinstance(value, dict) else {}
        if not inner or any(key in SETTINGS and not isinstance(inner[key], dict) for key in inner):
            yield prefix + name, value
        else:
            yield from entries(value, f"{prefix}{name}.")


def dimension(path: str, entry: object, experiment: Experiment) -> Dimension:
    """Checks one entry of a space file.

    Raises:
      UserError: it does not fit the experiment.
    """
    known = dict(leaves(experiment))
    if path not in known or path == "name" or path.endswith(".type") or path.split(".")[0] in OPERATIONAL:
        near = difflib.get_close_matches(path, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and path not in known else ""
        raise UserError(("nothing that training depends on" if path in known else "no such field") + hint)
    settings = set(entry) if isinstance(entry, dict) else set()
    if settings != {"choices"} and not {"low", "high"} <= settings <= {"low", "high", "log", "step"}:
        raise UserError(f"{json.dumps(entry, default=str)} is neither {{low, high, log, step}} nor {{choices}}")

    def parse(value: object) -> object:
        """The value of the field, parsed as on the command line."""
        return dict(leaves(parse_overrides(experiment, [f"--{path}", str(value)])))[path]

    if "choices" in settings:
        choices = entry["choices"]
        if not isinstance(choices, list) or not all(isinstance(item, str | int | float) for item in choices):
            raise UserError("choices must be a list of numbers, strings, or true and false")
        if len(set(map(str, choices))) < max(len(choices), 1):
            raise UserError("choices must be different, and one at least")
        same = [item for item in choices if parse(item) == known[path]]
        return Dimension(path, choices=tuple(choices), default=same[0] if same else None)
    return number_range(path, entry, known[path], [parse(entry[end]) for end in ("low", "high")])


def number_range(path: str, entry: Mapping[str, object], own: object, ends: Sequence[object]) -> Dimension:
    """The dimension of an entry with low and high.

    Args:
      path: the field.
      entry: the entry as the file has it.
      own: the experiment's own value.
      ends: low and high, parsed as values of the field.
    """
    low, high, log, step = entry["low"], entry["high"], entry.get("log", False), entry.get("step")
    for value in (low, high, *ends, 1 if step is None else step):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{value!r} is no number; give choices")
    if low > high:
        raise UserError(f"low={low} is above high={high}")
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise UserError("log must be true or false; if true, low must be positive and there is no step")
    # If the field is None, the way that low and high are written decides between integer and float.
    whole = isinstance(low, int) and isinstance(high, int) and not isinstance(own, float)
    if step is not None and (step <= 0 or (whole and not isinstance(step, int))):
        raise UserError(f"step={step} must be a positive {'whole ' if whole else ''}number")
    inside = isinstance(own, int | float) and low <= own <= high
    if inside and step is not None:
        inside = abs((own - low) / step - round((own - low) / step)) < 1e-8
    return Dimension(path, (), low, high, log, step, whole, own if inside else None)


def arguments(space: Sequence[Dimension], params: Mapping[str, Value]) -> list[str]:
    """The values of a trial as command-line arguments, which turn the experiment into the trial's."""
    return [word for part in space for word in (f"--{part.path}", part.text(params[part.path]))]
