"""The `bertgpt` command. Flags, signals and process exit codes live in this package and nowhere else.

Exit codes: 0 done (or stopped by SIGTERM with everything saved), 1 a check that failed, 2 a user error, 130 stopped by
Ctrl-C.
"""

import ast
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import bertgpt
from bertgpt.cli.hints import explain
from bertgpt.cli.options import GRAMMAR, HELP, Command, flags_of, parse_options
from bertgpt.overrides import UnknownField
from bertgpt.types import UserError

# Each is a module of this package with a `COMMAND`, or `ACTIONS` (name → command), imported when it is called.
COMMANDS = (
    "train", "evaluate", "predict", "generate", "prompt", "features", "report",
    "sweep", "tune", "tokenizer", "prepare", "convert", "list", "show", "env",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("bertgpt").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of everything that is as it should be
    try:
        return run_command(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"bertgpt: {str(error).removeprefix('bertgpt ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bertgpt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(argv: list[str]) -> int:
    if not argv or argv[0] in HELP:
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"bertgpt {bertgpt.__version__}")
        return 0
    name, *args = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no command {name!r}{hint} (there are {', '.join(COMMANDS)})")
    module = importlib.import_module(f"bertgpt.cli.{name}")
    actions: dict[str, Command] = vars(module).get("ACTIONS", {})
    if not actions:
        return call(module.COMMAND, args, f"bertgpt {name}")
    if args[:1] and args[0] in HELP:
        print(f"usage: bertgpt {name} ACTION …\n\nactions:")
        for action, command in actions.items():
            print(f"  {action:<10} {command.options.__doc__.splitlines()[0]}")
        return 0
    if not args or args[0] not in actions:
        found = f", not {args[0]!r}" if args else ""
        raise UserError(f"bertgpt {name}: give an action, {' or '.join(actions)}{found}")
    return call(actions[args[0]], args[1:], f"bertgpt {name} {args[0]}")


def call(command: Command, args: Sequence[str], prog: str) -> int:
    """Parses the arguments and runs the command."""
    try:
        return command.run(parse_options(command, args, prog))
    except UnknownField as error:
        raise UserError(f"{prog}: {explain(error, flags_of(command))}") from None
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def overview() -> str:
    """The help of `bertgpt` itself: each command with the first line of its module's docstring."""
    folder = Path(__file__).parent
    lines = ["usage: bertgpt COMMAND …", "", bertgpt.__doc__.splitlines()[0], "", "commands:"]
    for name in COMMANDS:
        text = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")))
        lines.append(f"  {name:<10} {text.splitlines()[0]}")
    more = "`bertgpt COMMAND --help` shows the options of a command, `bertgpt --version` the version."
    return "\n".join([*lines, "", more, GRAMMAR])
