"""The `bertgpt` command. Flags, signals and process exit codes live in this package and nowhere else.

Exit codes: 0 done (or stopped by SIGTERM with everything saved), 1 a check that failed, 2 a user error, 3 unfinished
for another reason than the input, such as a process that is gone (the same command resumes), 70 a fault of bertgpt
itself, 130 stopped by Ctrl-C. Errors print one line; `--traceback`, anywhere on the command line, shows where they were
raised.
"""

import ast
import contextlib
import difflib
import importlib
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import bertgpt
from bertgpt.cli.hints import explain
from bertgpt.cli.options import GRAMMAR, HELP, Command, flags_of, parse_options
from bertgpt.cli.streams import prepare_streams
from bertgpt.distributed import GONE, process_count
from bertgpt.io.paths import shown
from bertgpt.io.retry import may_resume
from bertgpt.overrides import UnknownField
from bertgpt.runs.compiler import COMPILING
from bertgpt.training.terminal import discard
from bertgpt.types import UserError

# Each is a module of this package with a `COMMAND`, or `ACTIONS` (name → command), imported when it is called.
COMMANDS = (
    "train", "evaluate", "predict", "generate", "prompt", "features", "report",
    "sweep", "tune", "tokenizer", "prepare", "convert", "prune", "export", "serve", "list", "show", "plan", "env",
)  # fmt: skip

TRACEBACK = "--traceback"


class Lines(logging.Formatter):
    """Log lines name URLs in place of their local copies."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    prepare_streams()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Lines("%(message)s"))
    logging.getLogger("bertgpt").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of everything that is as it should be
    args, verbose = without_traceback(sys.argv[1:] if argv is None else argv)
    try:
        code = run_command(args)
        sys.stdout.flush()  # here, so that a full disk behind standard output is an error like others
        return code
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        discard(sys.stdout)
        return 0
    except KeyboardInterrupt:
        print("bertgpt: interrupted", file=sys.stderr)
        return leave(130)
    except Exception as error:
        if verbose:
            traceback.print_exception(error)
        code, message = explain_error(error)
        print(f"bertgpt: {one_line(shown(message))}", file=sys.stderr)
        return leave(code)


def leave(code: int) -> int:
    """Returns the exit code of a command that has failed. One of several processes ends at once: JAX would wait."""
    return code if process_count() == 1 else end_now(code)


def end(code: int) -> int:
    """Returns the exit code, or ends at once if a program is still being compiled: Python would wait for minutes."""
    compiling = any(thread.name.startswith(COMPILING) for thread in threading.enumerate())
    return end_now(code) if compiling and process_count() == 1 else code


def end_now(code: int) -> NoReturn:
    """Ends the process without waiting for its threads, or for other processes."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def without_traceback(argv: Sequence[str]) -> tuple[list[str], bool]:
    """(the arguments without --traceback, whether it was among them). After `--` it belongs to another program."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:end] if word != TRACEBACK]
    return own + words[end:], len(own) < end


def explain_error(error: Exception) -> tuple[int, str]:
    """(exit code, message) of whatever ended a command."""
    if isinstance(error, UserError):
        return GONE if may_resume(error) else 2, str(error).removeprefix("bertgpt ")
    if isinstance(error, OSError):
        if error.filename is None:  # no file was opened: it is a stream that broke
            discard(sys.stdout)
        name = "standard output" if error.filename is None else os.fsdecode(error.filename)
        return 2, f"{name}: {error.strerror or error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return 2, f"out of memory: {error or 'lower batch_size or the sizes of the model'}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    name = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
    return 70, f"a fault of bertgpt: {name}: {error}; please report it, with what {TRACEBACK} shows"


def one_line(message: str) -> str:
    """The message on one line; characters that are not printable, which a terminal may obey, as \\x00."""
    flat = re.sub(r"\s*\n\s*", " ", message.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in flat)


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
    errors = "Errors print one line; --traceback, anywhere on the command line, shows where they were raised."
    return "\n".join([*lines, "", more, GRAMMAR, errors])
