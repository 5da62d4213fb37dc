"""The grammar of all commands: options are the fields of a frozen dataclass. tyro prints the help.

A field's name, type, default and docstring are the flag's. Dashes may stand for underscores and `=` for the space
before the value. A boolean takes True or False; alone it means True. A tuple takes all words up to the next flag.
Fields of a nested dataclass are flags as well: --outer.inner, or --inner if it is `Inline`.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import tyro

from bertgpt.overrides import UnknownField, is_flag, parse_value
from bertgpt.ranges import field_type as type_of
from bertgpt.ranges import mismatch
from bertgpt.types import JsonObject, UserError

GRAMMAR = "Booleans take True or False; a boolean flag alone means True. --some-flag and --some_flag are the same."
HELP = ("-h", "--help")

# How a field appears on the command line, beside its type.
Positional = tyro.conf.Positional
"""without a flag, in the order of the fields"""
Repeatable = tyro.conf.UseAppendAction
"""one value, but the flag may be repeated"""
Inline = tyro.conf.OmitArgPrefixes
"""a nested dataclass, whose fields are options like the others"""
Fields = tyro.conf.Suppress[Annotated[tuple[str, ...], "fields"]]
"""all other flags and their values: fields of an experiment, for `overrides.parse_overrides`"""
Given = tyro.conf.Suppress[Annotated[tuple[str, ...], "given"]]
"""names of the flags that were given, whose values are not defaults"""
Rest = tyro.conf.Suppress[Annotated[tuple[str, ...], "rest"]]
"""all words after `--`"""

_POSITIONAL = get_args(Positional[int])[1]
_REPEATABLE = get_args(Repeatable[tuple[int, ...]])[1]
_INLINE = get_args(Inline[int])[1]


class Command(NamedTuple):
    """A command, or one action of a command."""

    options: type
    """a frozen dataclass; its docstring says what the command does"""
    run: Callable[[Any], int]
    """carries out the command and returns the exit code"""
    epilog: str = ""
    """printed after the options"""
    describe: Callable[[Sequence[str]], None] | None = None
    """prints more help, given the positional arguments before --help"""


class Option(NamedTuple):
    """One field of an options dataclass."""

    declared: Any
    """type, without markers"""
    markers: tuple[object, ...]
    path: tuple[str, ...]
    """names of the nested dataclasses it lies in, and its own"""
    required: bool

    @property
    def variadic(self) -> bool:
        return get_origin(self.declared) is tuple and _REPEATABLE not in self.markers


def options_of(cls: type, path: tuple[str, ...] = ()) -> dict[str, Option]:
    """Name → option for each field, nested dataclasses' included."""
    found: dict[str, Option] = {}
    for field in dataclasses.fields(cls):
        declared = type_of(cls, field.name)
        declared, *markers = get_args(declared) if get_origin(declared) is Annotated else (declared,)
        if dataclasses.is_dataclass(declared):
            prefix = "" if _INLINE in markers else f"{field.name}."
            inner = options_of(declared, (*path, field.name))
            found |= {f"{prefix}{name}": option for name, option in inner.items()}
        else:
            missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            found[field.name] = Option(declared, tuple(markers), (*path, field.name), missing)
    return found


def flags_of(command: Command) -> list[str]:
    """Names of the command's own flags."""
    hidden = ("fields", "given", "rest", _POSITIONAL)
    return [n for n, o in options_of(command.options).items() if not any(mark in hidden for mark in o.markers)]


def parse_options(command: Command, args: Sequence[str], prog: str) -> object:
    """An instance of the command's options.

    Args:
      command: what is called.
      args: the words after the command's name.
      prog: the command's name, for messages.

    Raises:
      UserError: an unknown flag, a missing argument, or a value that does not fit its type. One line.
      SystemExit: --help was given, and the help printed.
    """
    options = options_of(command.options)
    special = {mark: name for name, option in options.items() for mark in option.markers if isinstance(mark, str)}
    own = set(flags_of(command))
    values: JsonObject = {}
    positional: list[str] = []
    fields: list[str] = []
    queue = deque(args)
    while queue:
        word = queue.popleft()
        if word in HELP:
            print_help(command, prog)
            if command.describe is not None and positional:
                command.describe(positional)
            raise SystemExit(0)
        if word == "--" and "rest" in special:
            values[special["rest"]] = tuple(queue)
            break
        if not is_flag(word):
            positional.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in own:
            option = options[name]
            given = [text] if equals else _values_after(option, queue)
            value = _parse(option, f"--{name}", given)
            values[name] = values.get(name, ()) + value if _REPEATABLE in option.markers else value
        elif "fields" in special:
            fields += [word, *([] if equals else _words(queue))]
        else:
            raise UnknownField(name, sorted(own))
    if fields:
        values[special["fields"]] = tuple(fields)
    if "given" in special:
        values[special["given"]] = tuple(values)
    values |= _positional_values(options, positional, prog)
    missing = [name for name, option in options.items() if option.required and name not in values]
    if missing:
        names = ", ".join(f"--{name}" if name in own else name.upper() for name in missing)
        raise UserError(f"{prog}: {names} {'is' if len(missing) == 1 else 'are'} required; {prog} --help shows how")
    return _build(command.options, {options[name].path: value for name, value in values.items()})


def _words(queue: deque[str]) -> list[str]:
    """The words up to the next flag."""
    found = []
    while queue and not is_flag(queue[0]) and queue[0] not in ("--", *HELP):
        found.append(queue.popleft())
    return found


def _values_after(option: Option, queue: deque[str]) -> list[str]:
    if option.variadic:
        return _words(queue)
    if option.declared is bool and not (queue and queue[0] in ("True", "False", "true", "false")):
        return []  # a flag alone
    return [queue.popleft()] if queue and not is_flag(queue[0]) else []


def _parse(option: Option, name: str, words: Sequence[str]) -> object:
    try:
        if not words and get_origin(option.declared) is tuple:
            raise ValueError("followed by a value")
        if list(words) == [""] and get_origin(option.declared) is not tuple and name.startswith("--"):
            raise ValueError("followed by a value, not by an empty one")  # as an unset variable of a shell leaves
        value = parse_value(option.declared, words)
    except ValueError as error:
        raise UserError(f"{' '.join((name, *words))}: must be {error}") from None
    if problem := mismatch(Annotated[(option.declared, "an option", *option.markers)], value):
        raise UserError(f"{' '.join((name, *words))} must {problem}")
    return value


def _positional_values(options: dict[str, Option], words: Sequence[str], prog: str) -> JsonObject:
    found, left = {}, list(words)
    for name, option in options.items():
        if _POSITIONAL in option.markers and left:
            count = len(left) if option.variadic else 1
            found[name], left = _parse(option, name.upper(), left[:count]), left[count:]
    if left:
        raise UserError(f"{prog}: unexpected argument {left[0]!r}")
    return found


def _build(cls: type, values: dict[tuple[str, ...], object]) -> object:
    given: JsonObject = {path[0]: value for path, value in values.items() if len(path) == 1}
    for field in dataclasses.fields(cls):
        inner = {path[1:]: value for path, value in values.items() if path[0] == field.name and len(path) > 1}
        if inner:
            declared = type_of(cls, field.name)
            given[field.name] = _build(get_args(declared)[0] if get_origin(declared) is Annotated else declared, inner)
    return cls(**given)


def print_help(command: Command, prog: str) -> None:
    """Usage, what the command does, and its options."""
    print_fields(command.options, tyro.MISSING, prog)
    print("\n".join(filter(None, (command.epilog, GRAMMAR))))


def print_fields(cls: type, default: object, prog: str) -> None:
    """The fields of a dataclass with their docstrings and the values of `default`, as flags."""
    markers = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName)
    given = {} if default is tyro.MISSING else {"default": default}
    try:
        tyro.cli(cls, args=["--help"], prog=prog, use_underscores=True, config=markers, **given)
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise
