"""Which values the fields of a config may have: declared with their types, checked by `check_fields`.

    dropout: Rate = 0.1
    steps: Count | None = None
    norm_eps: Annotated[float, Range(0.0, 0.1, above=True)] = 1e-12

Every number of every config declares its range. NaN and infinity lie in none.
"""

import dataclasses
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from bertgpt.types import UserError

LARGEST = 2**31 - 1  # of int32, in which steps and token ids are counted


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included unless `above` or `below` is set."""

    low: float
    high: float | None = None
    """None: the largest int32"""
    above: bool = False
    """`low` itself is excluded"""
    below: bool = False
    """`high` itself is excluded"""

    def problem(self, value: float) -> str:
        """What the value must be, such as "be positive", if it is not in the range; else ""."""
        high = LARGEST if self.high is None else self.high
        too_low = not (value > self.low if self.above else value >= self.low)
        too_high = not (value < high if self.below else value <= high)
        if not (too_low or too_high):
            return ""
        if isinstance(self.high, float):
            if self.above and self.below:
                return f"lie between {self.low:g} and {self.high:g}"
            return f"lie in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        if too_high:
            return f"be at most {high:,}"
        if self.low == 0:
            return "be positive" if self.above else "not be negative"
        return f"be {'more than' if self.above else 'at least'} {self.low:g}"


Count = Annotated[int, Range(1)]
"""1, 2, …"""
Natural = Annotated[int, Range(0)]
"""0, 1, …"""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""of random numbers"""
Width = Annotated[int, Range(1, 1_000_000)]
"""an axis of parameters"""
Layers = Annotated[int, Range(1, 1_000)]
"""a number of layers, each of which is traced and compiled"""
Positive = Annotated[float, Range(0, above=True)]
"""above 0"""
NonNegative = Annotated[float, Range(0)]
"""0 or above"""
Fraction = Annotated[float, Range(0.0, 1.0)]
"""in [0, 1]"""
Rate = Annotated[float, Range(0.0, 1.0, below=True)]
"""in [0, 1)"""
LearningRate = Annotated[float, Range(0, 10**38, above=True)]
"""above 0; how large is too large, only the loss shows"""
Epsilon = Annotated[float, Range(0.0, 0.1, above=True)]
"""a small number that keeps a denominator from 0"""
RematPolicy = Literal["none", "dots", "names", "full"]
"""what the backward pass finds stored instead of recomputing it, the most first: see `layers.stack.stack`"""
REMAT_POLICIES: tuple[RematPolicy, ...] = get_args(RematPolicy)
Remat = RematPolicy | bool
"""the type of a config's field: False and True, as in older experiments, stand for none and full"""


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    types.NoneType: ((types.NoneType,), "None"),
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    Path: ((Path,), "a path"),
}


def remat_policy(remat: Remat) -> RematPolicy:
    """The policy that the value of a config's field stands for."""
    return ("full" if remat else "none") if isinstance(remat, bool) else remat


def check_fields(config: object) -> None:
    """Checks the type and range of every field of a dataclass; for its `__post_init__`.

    Raises:
      UserError: names class, field and value, and says what the value must be.
    """
    name = type(config).__name__.removesuffix("Config")
    values = vars(config)
    for field in dataclasses.fields(config):
        if problem := mismatch(field_type(type(config), field.name), values[field.name]):
            raise UserError(f"{name}: {field.name}={shown(values[field.name])} must {problem}")


def mismatch(declared: Any, value: object) -> str:
    """What a value must be, such as "be a whole number", if it is none of the declared type; else ""."""
    kind, inner = get_origin(declared), get_args(declared)
    if kind is Annotated:
        found = mismatch(inner[0], value)
        limits = (mark.problem(value) for mark in inner[1:] if isinstance(mark, Range))
        return found or next(filter(None, limits), "")
    if kind in (Union, types.UnionType):
        problems = [mismatch(option, value) for option in inner]
        if "" in problems:
            return ""
        # Of the range that a number misses, rather than of the types that it does not have.
        near = [p for p, option in zip(problems, inner, strict=True) if get_origin(option) is Annotated]
        near = near if isinstance(value, int | float) and not isinstance(value, bool) else []
        return near[0] if near else "be " + " or ".join(problem.removeprefix("be ") for problem in problems)
    if kind is tuple:
        if not isinstance(value, tuple):
            return "be a tuple"
        items = zip(inner[:1] * len(value) if inner[-1] is ... else inner, value, strict=True)
        return next(filter(None, (mismatch(each, item) for each, item in items)), "")
    if kind is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in inner)
        return "" if fits else f"be {' or '.join(map(str, inner))}"
    if declared in _KINDS:
        classes, wanted = _KINDS[declared]
        if not isinstance(value, classes) or (isinstance(value, bool) and declared is not bool):
            return f"be {wanted}"
        if isinstance(value, float) and not math.isfinite(value):
            return "be a finite number"
        if isinstance(value, str) and not is_text(value):
            return "be text that UTF-8 can represent, without NUL"
        return ""
    if isinstance(declared, type) and kind is None and declared is not Any and not isinstance(value, declared):
        return f"be {_article(declared.__name__)}"
    if kind is Callable and not callable(value):
        return "be a function"
    return ""


def is_text(value: str) -> bool:
    """Whether a string can be written to a file, and name one: no half of a surrogate pair, no NUL."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def shown(value: object) -> str:
    """A value in an error message, on one line."""
    text = repr(value) if isinstance(value, str | tuple | list | dict | types.NoneType) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


@functools.cache
def field_type(cls: type, name: str) -> Any:
    """The type that a field of a dataclass is declared with."""
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    declared = inspect.get_annotations(owner)[name]
    if not isinstance(declared, str):
        return declared
    return eval(declared, vars(sys.modules[owner.__module__]))
