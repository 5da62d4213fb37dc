"""Overrides given as text, as on a command line: `--optim.lr 3e-4`. The types of the fields say how they are read."""

import dataclasses
import difflib
import itertools
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from bertgpt.config import Eval, Experiment, leaves, with_overrides
from bertgpt.ranges import field_type, mismatch, shown
from bertgpt.types import UserError


class UnknownField(UserError):
    """A flag names a field that the config does not have."""

    def __init__(self, path: str, known: Sequence[str]):
        """`path`: the name that was given; `known`: the names that exist."""
        self.path, self.known = path, tuple(known)
        super().__init__(f"unknown option --{path}{did_you_mean(path, known)}")


def did_you_mean(path: str, known: Sequence[str]) -> str:
    """ "; did you mean --optim.lr?" for `lr`: the names with the same last part, else the one spelt most like it."""
    last = path.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last][:3]
    near = near or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {' or '.join(f'--{name}' for name in near)}?" if near else ""


def parse_overrides(config: Any, args: Sequence[str]) -> Any:
    """Applies `--dotted.field value …` arguments, all at once; of a field given twice, the last value counts.

    Dashes may stand for underscores and `=` for the space before the value. A field of several values takes all words
    up to the next flag. A boolean takes True or False; alone it means True. None is written None.

    Raises:
      UserError: an unknown field, or a value that does not fit its type. One line that names the flag.
    """
    return with_overrides(config, {path: _parse_field(config, path, words) for path, words in split_flags(args)})


def is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]", word) is not None


def split_flags(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name, words that follow) of each flag.

    Raises:
      UserError: there are words before the first flag.
    """
    found: list[tuple[str, list[str]]] = []
    for arg in args:
        if is_flag(arg):
            name, equals, value = arg[2:].partition("=")
            found.append((name.replace("-", "_"), [value] if equals else []))
        elif found:
            found[-1][1].append(arg)
        else:
            raise UserError(f"unexpected argument {arg!r}: fields are given as --FIELD VALUE")
    return found


def _parse_field(root: Any, path: str, words: Sequence[str]) -> Any:
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        owner = members(owner).get(parent)
    if name not in members(owner):
        known = dict(leaves(root))
        empty = next((prefix for prefix in itertools.accumulate(parents, "{}.{}".format) if prefix in known), None)
        if path in known or path.partition(":")[0] in members(root):  # --optim.type NAME, --optim:name
            raise UserError(_replacing(path, path.partition(":")[0].removesuffix(".type")))
        if empty is not None:  # lora.rank, where lora is None
            raise UserError(_replacing(f"{path}: {empty} is {known[empty]!r}", empty))
        raise UnknownField(path, [leaf for leaf in known if not leaf.endswith(".type")])
    annotation = field_type(type(owner), name) if dataclasses.is_dataclass(owner) else Any
    # A field of type Any holds a component; in a component it may hold the name of one too, such as a tokenizer's path.
    if annotation is Any and not isinstance(owner, Experiment | Eval | tuple):
        annotation = str | None
    if annotation is Any and list(words) == ["None"]:
        return None
    try:
        value = parse_value(annotation, words)
    except ValueError as error:
        if not str(error):
            raise UserError(_replacing(path, path)) from None
        raise UserError(f"{' '.join((f'--{path}', *words))}: must be {error}") from None
    if problem := mismatch(annotation, value):
        raise UserError(f"--{path}={shown(value)} must {problem}")
    return value


def members(config: Any) -> dict[str, Any]:
    """Name → value of the fields of a dataclass, or index → item of a tuple of components; {} of a leaf."""
    if isinstance(config, tuple):
        return {str(i): item for i, item in enumerate(config) if dataclasses.is_dataclass(item)}
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return {field.name: vars(config)[field.name] for field in fields}


def _replacing(path: str, component: str) -> str:
    return (
        f"--{path}: flags set single values and cannot replace a component; do that in an experiment file:"
        f" with_overrides(experiment, {{{component!r}: …}})"
    )


_TRUTH = {"True": True, "true": True, "False": False, "false": False}
_READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    types.NoneType: ("None", {"None": None}.__getitem__),
    bool: ("True or False", _TRUTH.__getitem__),
    int: ("a whole number", int),
    float: ("a number", float),
    Path: ("a path", Path),
    str: ("a text", str),
}


def parse_value(declared: Any, words: Sequence[str]) -> Any:
    """The value of a declared type that words on the command line stand for.

    Raises:
      ValueError: says what the words must be, such as "a whole number"; nothing, if the type has no textual form.
    """
    kind, inner = get_origin(declared), get_args(declared)
    if kind is Annotated:
        return parse_value(inner[0], words)
    if kind in (Union, types.UnionType):
        wanted = []
        for option in sorted(inner, key=lambda option: [*_READERS].index(option) if option in _READERS else 4):
            try:
                return parse_value(option, words)
            except ValueError as error:
                wanted.append(str(error))
        raise ValueError(" or ".join(dict.fromkeys(filter(None, wanted))))
    if kind is tuple and inner[-1] is ...:
        return tuple(parse_value(inner[0], [word]) for word in words)
    if declared is bool and not words:
        return True
    choices = {str(choice): choice for choice in inner} if kind is Literal else {}
    if not choices and declared not in _READERS:
        raise ValueError
    if len(words) != 1:
        raise ValueError("one value" if words else "followed by a value")
    wanted, read = _READERS.get(declared, (" or ".join(choices), choices.__getitem__))
    try:
        return read(words[0])
    except (ValueError, KeyError):
        raise ValueError(wanted) from None
