"""Logs of a run: metrics.jsonl, train.log, TensorBoard files, and a progress bar or plain lines."""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from bertgpt.distributed import on_main
from bertgpt.io.files import CannotWrite, json_text, write_json_lines
from bertgpt.io.retry import with_retries
from bertgpt.training.terminal import Output
from bertgpt.types import JsonObject, Sum, UserError

warnings = logging.getLogger(__name__)


def read_metrics(path: str | Path) -> list[JsonObject]:
    """Reads a metrics.jsonl. A last line that was cut off by a crash is skipped.

    Args:
      path: RUN/metrics.jsonl.

    Returns:
      One dict per line; its "kind" is "train" or "eval".

    Raises:
      UserError: the file is missing, or a line is not one of metrics.

    Examples:
      >>> lines = bertgpt.read_metrics("runs/tiny/metrics.jsonl")  # doctest: +SKIP
      >>> losses = [line["loss"] for line in lines if line["kind"] == "train"]  # doctest: +SKIP
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError(f"{path}:{number}: not valid JSON") from None
        if not isinstance(value, dict) or type(value.get("step")) is not int:
            raise UserError(f'{path}:{number}: must be a JSON object with a "step"')
        values.append(value)
    return values


def means(totals: Mapping[str, Sum]) -> dict[str, float]:
    """Name → sum / weight of (sum, weight) pairs on the host.

    A vector, which is a distribution over C classes, gives three numbers: `_max` and `_min`, its largest and smallest
    entry, and `_entropy`, its entropy divided by log C, which is 1 if all entries are equal.
    """
    values: dict[str, float] = {}
    for name, total in totals.items():
        mean = np.asarray(total.sum, np.float64) / max(float(total.weight), 1e-9)
        if mean.ndim == 0:
            values[name] = float(mean)
            continue
        shares = mean / max(mean.sum(), 1e-9)
        entropy = -float(np.sum(shares * np.log(np.maximum(shares, 1e-12))))
        values |= {f"{name}_max": float(mean.max()), f"{name}_min": float(mean.min())}
        values[f"{name}_entropy"] = entropy / max(math.log(mean.size), 1e-9)
    return values


class RunLog:
    """Writes the metrics of a run, each line of a step and evaluation exactly once, however often the run is resumed.

    `train` and `eval` write to metrics.jsonl, TensorBoard and the terminal, `message` to the terminal. What is shown on
    the terminal also goes to train.log, with the time; it may go away without ending the run.
    """

    def __init__(self, run: Path, *, name: str, total_steps: int, start_step: int, lines: int = 0):
        """Opens the logs.

        Args:
          run: the run directory.
          name: name of the run.
          total_steps: steps of the whole run.
          start_step: step of the checkpoint that the run starts from. Lines of later steps are dropped, as those steps
            are run again; so are evaluations of a finished training, all of which are run again.
          lines: of training, that had been logged when this checkpoint was saved; a warning tells if there are fewer.
        """
        self.name, self.total, self.start = name, total_steps, start_step
        self.path = run / "metrics.jsonl"

        def holds(line: JsonObject) -> bool:
            return line["step"] <= start_step - (line.get("kind") == "eval" and start_step == total_steps)

        kept = [line for line in read_metrics(self.path) if holds(line)] if self.path.exists() else []
        self.evaluated = {
            line.get("name") for line in kept if line["step"] == start_step and line.get("kind") == "eval"
        }
        """names of evaluations of the first step that were logged before"""
        write_json_lines(self.path, kept)
        self.tokens, self.seconds, self.nonfinite_steps, self.skipped_batches = 0, 0.0, 0, 0
        self.lines = 0
        """of training, so far"""
        for line in kept:
            if line.get("kind") == "train":
                self._count(line)
        if self.lines < lines:
            warnings.warning(
                "%s: holds %d of the %d lines of training up to step %s: the run's totals lack the rest",
                self.path, self.lines, lines, f"{start_step:,}",
            )  # fmt: skip
        self.file = open(self.path, "a", encoding="utf-8")
        self.text = open(run / "train.log", "a", encoding="utf-8")
        from tensorboardX import SummaryWriter  # takes half a second to import

        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        self.output = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout)
        self.output.notify(self._lost)
        # Plain lines in notebooks too, whose kernels ask for colours (FORCE_COLOR) although they are no terminal.
        terminal = self.output.isatty()
        self.console = Console(
            file=self.output, highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=terminal
        )
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task(name, total=total_steps, completed=start_step, status="")
        self.began = time.perf_counter()

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        self.output.notify(None)
        for file in (self.file, self.text, self.board):
            with contextlib.suppress(OSError):  # which was reported when the line was written
                file.close()

    def train(self, step: int, values: Mapping[str, float], record: bool = True) -> None:
        """Logs means over the steps since the last call; without `record`, on the terminal only."""
        if record:
            self._write({"kind": "train", "step": step}, "train", values)
            self._count(values)
        elapsed = time.perf_counter() - self.began
        left = elapsed / max(step - self.start, 1) * (self.total - step)
        rate = (
            f"{values['tokens_per_second'] / 1e3:.1f}k tok/s  {100 * values['matmul_utilisation']:.0f}% of peak matmul"
        )
        eta = f"ETA {int(left) // 60}:{int(left) % 60:02d}"
        self.bar.update(self.task, completed=step, status=f"loss {values['loss']:.3f}  {rate}  {eta}")
        shown = {name: value for name, value in values.items() if name == "loss" or name.endswith("accuracy")}
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        width = len(str(self.total))
        line = f"{self.name}  {step:>{width}}/{self.total}  {numbers}  lr {values['lr']:.1e}  {rate}  {eta}"
        if self.console.is_terminal:  # the bar shows it
            self.note(line)
        else:
            self.message(line)

    def eval(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Logs one evaluation, unless it was logged before the run was resumed at this step."""
        if step == self.start and name in self.evaluated:
            return
        self._write({"kind": "eval", "step": step, "name": name}, name, values)
        self.message(
            f"{self.name}  {name} at {step}:  " + "  ".join(f"{key} {value:.4f}" for key, value in values.items())
        )

    def message(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self.note(text)
        self.console.print(text, markup=False)

    def sync(self) -> None:
        """Waits until all lines are on disk: a checkpoint must not survive a loss of power without those before it."""
        with self._write_errors(), open(self.path, "rb") as file:  # also when the log is closed, in another thread
            os.fsync(file.fileno())

    def _count(self, values: Mapping[str, Any]) -> None:
        """Totals of the run: non-padding tokens, training seconds, and steps that were not finite."""
        self.lines += 1
        before, self.tokens = self.tokens, values.get("tokens", self.tokens)
        self.seconds += (self.tokens - before) / max(values.get("tokens_per_second", 0.0), 1e-9)
        self.nonfinite_steps += values.get("nonfinite_steps", 0)
        self.skipped_batches += values.get("skipped_batches", 0)

    def note(self, text: str) -> None:
        """Writes a line to train.log only."""
        with contextlib.suppress(OSError):  # the metrics and checkpoints matter, and say so if the disk is full
            self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
            self.text.flush()

    def _lost(self, error: OSError) -> None:
        self.note(f"{self.name}: standard output is gone ({error.strerror}); the run continues without it")

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotWrite(f"{self.path}: cannot be written: {error.strerror}") from None

    def _write(self, head: JsonObject, tag: str, values: Mapping[str, float]) -> None:
        with self._write_errors():
            self.file.write(json_text(head | {"time": round(time.time(), 3)} | dict(values)) + "\n")
            with_retries(self.file.flush, str(self.path))
        for name, value in values.items():
            self.board.add_scalar(f"{tag}/{name}", value, head["step"])


class SilentLog:
    """The log of a process that writes none, because process 0 does; it holds the totals of process 0's."""

    def __init__(self, evaluated: Iterable[str], lines: int, tokens: int, seconds: float, *counts: int):
        self.evaluated, self.lines, self.tokens, self.seconds = set(evaluated), lines, tokens, seconds
        self.nonfinite_steps, self.skipped_batches = counts

    def train(self, step: int, values: Mapping[str, float], record: bool = True) -> None:
        """Nothing."""

    def eval(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def open_log(run: Path, *, name: str, total_steps: int, start_step: int, lines: int) -> Iterator[RunLog | SilentLog]:
    """The log of a run, in process 0; in the others a silent one. Arguments: as `RunLog`."""
    opened: list[RunLog] = []

    def begin() -> list[Any]:
        (run / "results.json").unlink(missing_ok=True)  # of a run whose last checkpoint is damaged
        opened.append(RunLog(run, name=name, total_steps=total_steps, start_step=start_step, lines=lines))
        log = opened[0]
        return [sorted(log.evaluated), log.lines, log.tokens, log.seconds, log.nonfinite_steps, log.skipped_batches]

    totals = on_main("open the log", begin)
    if opened:
        with opened[0]:
            yield opened[0]
    else:
        yield SilentLog(*totals)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table whose first column is text and whose other columns are numbers."""
    console = Console(highlight=False)
    # Where the output is piped, rich assumes 80 columns and would truncate wider tables.
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=sys.stdout, width=200, highlight=False).print(table)
